//! Protocol buffers as far as ONNX needs them: fields appended to the bytes of a message.
//!
//! The wire format is the one of <https://protobuf.dev/programming-guides/encoding/>.

/// A message's fields so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Message(Vec<u8>);

/// How a field's value is laid out, as its key says.
#[derive(Clone, Copy)]
enum Wire {
    Varint = 0,
    Bytes = 2,
    Fixed32 = 5,
}

impl Message {
    /// An integer, a boolean or an enum. Negative numbers are sign-extended to 64 bits.
    pub(super) fn integer(&mut self, field: u32, value: i64) -> &mut Self {
        self.key(field, Wire::Varint);
        varint(&mut self.0, value as u64);
        self
    }

    /// Integers that are packed into one field.
    pub(super) fn integers(&mut self, field: u32, values: &[i64]) -> &mut Self {
        let mut packed = Vec::with_capacity(values.len());
        values.iter().for_each(|&value| varint(&mut packed, value as u64));
        self.bytes(field, &packed)
    }

    /// A number of four bytes.
    pub(super) fn float(&mut self, field: u32, value: f32) -> &mut Self {
        self.key(field, Wire::Fixed32);
        self.0.extend(value.to_le_bytes());
        self
    }

    /// Text.
    pub(super) fn text(&mut self, field: u32, text: &str) -> &mut Self {
        self.bytes(field, text.as_bytes())
    }

    /// A message within this one.
    pub(super) fn message(&mut self, field: u32, message: &Self) -> &mut Self {
        self.bytes(field, &message.0)
    }

    /// Bytes as they are.
    pub(super) fn bytes(&mut self, field: u32, bytes: &[u8]) -> &mut Self {
        self.key(field, Wire::Bytes);
        varint(&mut self.0, bytes.len() as u64);
        self.0.extend_from_slice(bytes);
        self
    }

    /// The fields of another message of the same kind, behind this one's.
    pub(super) fn append(&mut self, other: &Self) -> &mut Self {
        self.0.extend_from_slice(&other.0);
        self
    }

    /// The message as it is written.
    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    fn key(&mut self, field: u32, wire: Wire) {
        varint(&mut self.0, u64::from(field) << 3 | wire as u64);
    }
}

/// Seven bits a byte, the lowest first; the top bit says that there are more.
fn varint(bytes: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The examples of the format's own guide, and what a field of each kind is.
    #[test]
    fn fields_are_laid_out_as_the_guide_has_them() {
        let mut message = Message::default();
        message.integer(1, 150).text(2, "testing").float(3, 1.0).integers(6, &[3, 270, 86942]);
        let mut wanted = vec![0x08, 0x96, 0x01, 0x12, 0x07];
        wanted.extend(b"testing");
        wanted.extend([0x1d, 0, 0, 0x80, 0x3f, 0x32, 0x06, 0x03, 0x8e, 0x02, 0x9e, 0xa7, 0x05]);
        assert_eq!(message.into_bytes(), wanted);

        let (mut outer, mut inner) = (Message::default(), Message::default());
        outer.message(3, inner.integer(1, 150)).append(&inner);
        assert_eq!(outer.into_bytes(), [0x1a, 0x03, 0x08, 0x96, 0x01, 0x08, 0x96, 0x01]);
    }

    #[test]
    fn large_and_negative_numbers_take_as_many_bytes_as_they_need() {
        for (value, n_bytes) in [(0, 1), (127, 1), (128, 2), (16_383, 2), (16_384, 3), (i64::MAX, 9), (-1, 10)] {
            let mut message = Message::default();
            message.integer(16, value);
            // A field's number above 15 takes a second byte.
            assert_eq!(message.into_bytes().len(), 2 + n_bytes, "{value}");
        }
    }
}
