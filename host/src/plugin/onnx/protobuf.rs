//! Protocol buffers as far as ONNX needs them: the fields of a message, one after the other, nothing copied.
//!
//! The wire format is the one of <https://protobuf.dev/programming-guides/encoding/>. Groups are refused: ONNX has none.

/// Why bytes are no message, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} at byte {offset}")]
pub struct Malformed {
    /// From the beginning of the file.
    pub offset: usize,
    /// What is wrong.
    pub what: &'static str,
}

/// The bytes of a message, and where they begin in the file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Message<'a> {
    bytes: &'a [u8],
    start: usize,
}

/// A field's value.
#[derive(Clone, Copy, Debug)]
pub(super) enum Value<'a> {
    /// An integer, a boolean or an enum.
    Varint(u64),
    /// Text, bytes, a message or packed numbers.
    Bytes(Message<'a>),
    /// A number of four or eight bytes, which nothing here looks at.
    Fixed,
}

impl<'a> Message<'a> {
    /// A whole file as a message.
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, start: 0 }
    }

    /// The bytes as they are.
    pub(super) fn bytes(self) -> &'a [u8] {
        self.bytes
    }

    /// The bytes as text.
    pub(super) fn text(self) -> Result<&'a str, Malformed> {
        std::str::from_utf8(self.bytes).map_err(|_| Malformed { offset: self.start, what: "text that is not UTF-8" })
    }

    /// Its fields by number, in the file's order.
    pub(super) fn fields(self) -> Fields<'a> {
        Fields { message: self, at: 0 }
    }
}

impl<'a> Value<'a> {
    /// A field that holds an integer.
    pub(super) fn integer(self) -> Option<i64> {
        match self {
            // Negative numbers are sign-extended to 64 bits, so this gets them back.
            Self::Varint(value) => Some(value as i64),
            _ => None,
        }
    }

    /// A field that holds text or a message.
    pub(super) fn message(self) -> Option<Message<'a>> {
        match self {
            Self::Bytes(message) => Some(message),
            _ => None,
        }
    }
}

/// The fields of a message. After an error there are no more.
pub(super) struct Fields<'a> {
    message: Message<'a>,
    at: usize,
}

impl<'a> Fields<'a> {
    fn malformed(&self, what: &'static str) -> Malformed {
        Malformed { offset: self.message.start + self.at, what }
    }

    fn varint(&mut self) -> Result<u64, Malformed> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = *self.message.bytes.get(self.at).ok_or_else(|| self.malformed("the file ends in a number"))?;
            self.at += 1;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(self.malformed("a number longer than 64 bits"))
    }

    fn take(&mut self, length: u64) -> Result<Message<'a>, Malformed> {
        let left = self.message.bytes.len() - self.at;
        let length = usize::try_from(length).ok().filter(|length| *length <= left);
        let length = length.ok_or_else(|| self.malformed("a part that is longer than what is left"))?;
        let bytes = &self.message.bytes[self.at..self.at + length];
        let taken = Message { bytes, start: self.message.start + self.at };
        self.at += length;
        Ok(taken)
    }

    fn field(&mut self) -> Result<(u64, Value<'a>), Malformed> {
        let key = self.varint()?;
        let value = match key & 7 {
            0 => Value::Varint(self.varint()?),
            1 => self.take(8).map(|_| Value::Fixed)?,
            2 => {
                let length = self.varint()?;
                Value::Bytes(self.take(length)?)
            }
            5 => self.take(4).map(|_| Value::Fixed)?,
            _ => return Err(self.malformed("a field of an unknown type")),
        };
        match key >> 3 {
            0 => Err(self.malformed("a field without a number")),
            number => Ok((number, value)),
        }
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, Value<'a>), Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.at >= self.message.bytes.len() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.at = self.message.bytes.len();
        }
        Some(field)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8]) -> Result<Vec<u64>, Malformed> {
        Message::new(bytes).fields().map(|field| field.map(|(number, _)| number)).collect()
    }

    #[test]
    fn fields_come_in_order_and_negative_numbers_come_back() {
        let bytes = [0x08, 0x96, 0x01, 0x12, 0x02, b'h', b'i', 0x1d, 0, 0, 0, 0, 0x21, 0, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(read(&bytes), Ok(vec![1, 2, 3, 4]));
        let mut fields = Message::new(&bytes).fields();
        let first = fields.next().expect("there are four").expect("well formed").1;
        assert_eq!(first.integer(), Some(150));
        let second = fields.next().expect("there are four").expect("well formed").1;
        assert_eq!(second.message().expect("bytes").text(), Ok("hi"));
        let minus_one = [0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01];
        let value = Message::new(&minus_one).fields().next().expect("one").expect("well formed").1;
        assert_eq!(value.integer(), Some(-1));
    }

    #[test]
    fn what_is_cut_off_or_odd_is_named_with_its_place() {
        let message = |bytes: &[u8]| read(bytes).expect_err("malformed").to_string();
        assert_eq!(message(&[0x08]), "the file ends in a number at byte 1");
        assert_eq!(message(&[0x12, 0x05, b'h']), "a part that is longer than what is left at byte 2");
        assert_eq!(message(&[0x08; 1]), "the file ends in a number at byte 1");
        assert_eq!(message(&[0x0b]), "a field of an unknown type at byte 1");
        assert_eq!(message(&[0x00, 0x00]), "a field without a number at byte 2");
        assert_eq!(message(&[0xff; 12]), "a number longer than 64 bits at byte 10");
        let huge = [0x12, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01];
        assert_eq!(message(&huge), "a part that is longer than what is left at byte 11");
    }
}
