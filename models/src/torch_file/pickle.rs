//! The part of Python's pickle format that `torch.save` writes for dictionaries of tensors and plain values.
//!
//! A pickle is a program for a stack machine, which can call any function of Python. This machine knows only the
//! instructions and names of [`Global`] that such dictionaries need, makes values of them, and calls nothing; every other
//! name is refused. Each instruction makes at most one value, so that the memory grows with the length of the program and
//! nothing else.

use std::collections::HashMap;

use tch::Kind;

/// A result, or a sentence that says why a pickle is refused.
pub(super) type Result<T> = std::result::Result<T, String>;

/// The place of a value in [`Values`].
pub(super) type Id = usize;

/// A value of Python.
#[derive(Clone, Debug)]
pub(super) enum Value {
    /// None, or a value of which nothing is needed but that it is there: booleans, floats, arguments of a program.
    Nothing,
    Int(i64),
    Text(String),
    Tuple(Vec<Id>),
    List(Vec<Id>),
    /// Keys and values in their order.
    Dict(Vec<(Id, Id)>),
    Global(Global),
    /// The elements that tensors are views of: their type, the name of their file in the archive, and their number.
    Storage {
        kind: Kind,
        key: Id,
        n_elements: Id,
    },
    /// A view of a storage; [`Values::view`] reads it.
    Tensor {
        storage: Id,
        offset: Id,
        size: Id,
        stride: Id,
    },
}

/// A name of a Python module that a dictionary of tensors needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Global {
    /// `collections.OrderedDict`.
    OrderedDict,
    /// `torch._utils._rebuild_tensor_v2`.
    Tensor,
    /// `torch._utils._rebuild_parameter`.
    Parameter,
    /// `torch.Size`, a tuple.
    Size,
    /// `argparse.Namespace`, the arguments of a training program, which are left out.
    Namespace,
    /// `torch.FloatStorage` and its siblings, by the type of their elements.
    Storage(Kind),
}

impl Global {
    fn find(module: &str, name: &str) -> Result<Self> {
        Ok(match (module, name) {
            ("collections", "OrderedDict") => Self::OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2") => Self::Tensor,
            ("torch._utils", "_rebuild_parameter") => Self::Parameter,
            ("torch", "Size") => Self::Size,
            ("argparse", "Namespace") => Self::Namespace,
            ("torch", "DoubleStorage") => Self::Storage(Kind::Double),
            ("torch", "FloatStorage") => Self::Storage(Kind::Float),
            ("torch", "HalfStorage") => Self::Storage(Kind::Half),
            ("torch", "BFloat16Storage") => Self::Storage(Kind::BFloat16),
            ("torch", "LongStorage") => Self::Storage(Kind::Int64),
            ("torch", "IntStorage") => Self::Storage(Kind::Int),
            ("torch", "ShortStorage") => Self::Storage(Kind::Int16),
            ("torch", "CharStorage") => Self::Storage(Kind::Int8),
            ("torch", "ByteStorage") => Self::Storage(Kind::Uint8),
            ("torch", "BoolStorage") => Self::Storage(Kind::Bool),
            _ => {
                let name: String = format!("{module}.{name}").chars().take(MAX_NAME).collect();
                return Err(format!(
                    "it contains `{name}`, code that is never run; save the state dict alone, as `torch.save(model.state_dict(), \
                     FILE)` does"
                ));
            }
        })
    }
}

/// A tensor as a view of a storage. Nothing about it is verified but that no number is negative and that size and stride
/// have as many axes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct View {
    pub kind: Kind,
    /// The file of the elements, by its name below `data/`.
    pub key: String,
    /// Number of elements in that file, as the pickle says.
    pub n_elements: u64,
    /// Index of the first element.
    pub offset: u64,
    pub size: Vec<u64>,
    /// Number of elements from one index of an axis to the next, by axis.
    pub stride: Vec<u64>,
}

/// All values of a pickle.
#[derive(Debug, Default)]
pub(super) struct Values(Vec<Value>);

impl Values {
    pub fn get(&self, id: Id) -> &Value {
        // Every id is that of a value that was added before.
        &self.0[id]
    }

    fn add(&mut self, value: Value) -> Id {
        self.0.push(value);
        self.0.len() - 1
    }

    /// The view that a tensor is, or none for another value.
    pub fn view(&self, id: Id) -> Result<Option<View>> {
        let &Value::Tensor { storage, offset, size, stride } = self.get(id) else { return Ok(None) };
        let bad = || "it is not as `torch.save` writes it".to_owned();
        let &Value::Storage { kind, key, n_elements } = self.get(storage) else { return Err(bad()) };
        let Value::Text(key) = self.get(key) else { return Err(bad()) };
        let key: String = key.chars().take(MAX_NAME).collect();
        let (size, stride) = (self.numbers(size)?, self.numbers(stride)?);
        if size.len() != stride.len() {
            return Err(bad());
        }
        Ok(Some(View { kind, key, n_elements: self.number(n_elements)?, offset: self.number(offset)?, size, stride }))
    }

    fn items(&self, id: Id) -> Option<&[Id]> {
        match self.get(id) {
            Value::Tuple(items) => Some(items),
            _ => None,
        }
    }

    fn number(&self, id: Id) -> Result<u64> {
        match self.get(id) {
            Value::Int(number) => u64::try_from(*number).map_err(|_| format!("it has the number {number}")),
            _ => Err("it has something else where a number belongs".to_owned()),
        }
    }

    fn numbers(&self, id: Id) -> Result<Vec<u64>> {
        let items = self.items(id).ok_or("it has something else where a tuple belongs")?;
        if items.len() > MAX_AXES {
            return Err(format!("it has {} axes, at most {MAX_AXES} are supported", items.len()));
        }
        items.iter().map(|&id| self.number(id)).collect()
    }
}

/// The longest part of a name in the file that a message repeats, in characters.
const MAX_NAME: usize = 80;
/// The largest number of axes of a tensor.
const MAX_AXES: usize = 16;

/// Reads a pickle; returns all its values and the place of the one that it ends with.
pub(super) fn read(bytes: &[u8]) -> Result<(Values, Id)> {
    let mut machine =
        Machine { rest: bytes, values: Values::default(), stack: Vec::new(), marks: Vec::new(), memo: HashMap::new() };
    loop {
        if let Some(top) = machine.step()? {
            return Ok((machine.values, top));
        }
    }
}

struct Machine<'a> {
    rest: &'a [u8],
    values: Values,
    stack: Vec<Id>,
    /// Heights of the stack, below which nothing is taken before the mark is.
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
}

impl<'a> Machine<'a> {
    /// Runs one instruction; returns the result after the last one.
    fn step(&mut self) -> Result<Option<Id>> {
        match self.byte()? {
            // PROTO
            0x80 => match self.byte()? {
                2..=5 => {}
                other => return Err(format!("its pickle has protocol {other}, only 2 to 5 are supported")),
            },
            // FRAME: the length of a part that is read at once.
            0x95 => drop(self.bytes(8)?),
            b'.' => return self.pop().map(Some),
            b'(' => self.marks.push(self.stack.len()),
            b'0' => drop(self.pop()?),
            b'1' => drop(self.pop_to_mark()?),
            // BINPUT, LONG_BINPUT, MEMOIZE
            b'q' => {
                let index = u32::from(self.byte()?);
                self.remember(index)?;
            }
            b'r' => {
                let index = self.u32()?;
                self.remember(index)?;
            }
            0x94 => self.remember(self.memo.len() as u32)?,
            // BINGET, LONG_BINGET
            b'h' => {
                let index = u32::from(self.byte()?);
                self.recall(index)?;
            }
            b'j' => {
                let index = self.u32()?;
                self.recall(index)?;
            }
            // NONE, NEWTRUE, NEWFALSE
            b'N' | 0x88 | 0x89 => self.push(Value::Nothing),
            // BININT, BININT1, BININT2, LONG1
            b'J' => {
                let number = self.u32()? as i32;
                self.push(Value::Int(i64::from(number)));
            }
            b'K' => {
                let number = self.byte()?;
                self.push(Value::Int(i64::from(number)));
            }
            b'M' => {
                let number = self.bytes(2)?;
                self.push(Value::Int(i64::from(u16::from_le_bytes([number[0], number[1]]))));
            }
            0x8a => {
                let number = self.long()?;
                self.push(number);
            }
            // BINFLOAT
            b'G' => {
                self.bytes(8)?;
                self.push(Value::Nothing);
            }
            // SHORT_BINUNICODE, BINUNICODE
            0x8c => {
                let length = self.byte()?;
                self.text(u32::from(length))?;
            }
            b'X' => {
                let length = self.u32()?;
                self.text(length)?;
            }
            b')' => self.push(Value::Tuple(Vec::new())),
            b']' => self.push(Value::List(Vec::new())),
            b'}' => self.push(Value::Dict(Vec::new())),
            // TUPLE, TUPLE1, TUPLE2, TUPLE3
            b't' => {
                let items = self.pop_to_mark()?;
                self.push(Value::Tuple(items));
            }
            n @ 0x85..=0x87 => {
                let mut items = (0x84..n).map(|_| self.pop()).collect::<Result<Vec<_>>>()?;
                items.reverse();
                self.push(Value::Tuple(items));
            }
            b'a' => {
                let item = self.pop()?;
                self.append(vec![item])?;
            }
            b'e' => {
                let items = self.pop_to_mark()?;
                self.append(items)?;
            }
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                self.set(&[key, value])?;
            }
            b'u' => {
                let items = self.pop_to_mark()?;
                self.set(&items)?;
            }
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                let global = Global::find(&module, &name)?;
                self.push(Value::Global(global));
            }
            // STACK_GLOBAL
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                let (Value::Text(module), Value::Text(name)) = (self.values.get(module), self.values.get(name)) else {
                    return Err("a name in its pickle is no text".to_owned());
                };
                let global = Global::find(module, name)?;
                self.push(Value::Global(global));
            }
            b'Q' => {
                let identity = self.pop()?;
                let storage = self.storage(identity)?;
                self.push(storage);
            }
            // REDUCE and NEWOBJ: a call, of which there are only those of `Global`.
            b'R' | 0x81 => {
                let (arguments, callee) = (self.pop()?, self.pop()?);
                self.call(callee, arguments)?;
            }
            // BUILD: attributes, of which none is needed (`_metadata` of a state dict).
            b'b' => {
                self.pop()?;
                let object = self.pop()?;
                self.stack.push(object);
            }
            other => return Err(format!("its pickle has the instruction {other:#04x}, which no state dict needs")),
        }
        Ok(None)
    }

    fn bytes(&mut self, n: usize) -> Result<&'a [u8]> {
        let (bytes, rest) = self.rest.split_at_checked(n).ok_or("its pickle ends too early")?;
        self.rest = rest;
        Ok(bytes)
    }

    fn byte(&mut self) -> Result<u8> {
        Ok(self.bytes(1)?[0])
    }

    fn u32(&mut self) -> Result<u32> {
        let bytes = self.bytes(4)?;
        Ok(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    /// The number of LONG1; one that no tensor has is a value of which nothing is needed.
    fn long(&mut self) -> Result<Value> {
        let length = usize::from(self.byte()?);
        let bytes = self.bytes(length)?;
        if length > 8 {
            return Ok(Value::Nothing);
        }
        let sign = bytes.last().is_some_and(|last| last & 0x80 != 0);
        let mut all = [if sign { 0xff } else { 0 }; 8];
        all[..length].copy_from_slice(bytes);
        Ok(Value::Int(i64::from_le_bytes(all)))
    }

    fn text(&mut self, length: u32) -> Result<()> {
        let text = std::str::from_utf8(self.bytes(length as usize)?);
        let text = text.map_err(|_| "a text in its pickle is not UTF-8")?.to_owned();
        self.push(Value::Text(text));
        Ok(())
    }

    fn line(&mut self) -> Result<String> {
        let end = self.rest.iter().position(|&byte| byte == b'\n').ok_or("its pickle ends too early")?;
        let line = String::from_utf8_lossy(&self.rest[..end]).into_owned();
        self.rest = &self.rest[end + 1..];
        Ok(line)
    }

    fn push(&mut self, value: Value) {
        let id = self.values.add(value);
        self.stack.push(id);
    }

    fn pop(&mut self) -> Result<Id> {
        let floor = self.marks.last().copied().unwrap_or(0);
        let top = if self.stack.len() > floor { self.stack.pop() } else { None };
        top.ok_or_else(|| "its pickle takes more values than there are".to_owned())
    }

    fn pop_to_mark(&mut self) -> Result<Vec<Id>> {
        let mark = self.marks.pop().ok_or("its pickle takes more values than there are")?;
        Ok(self.stack.split_off(mark))
    }

    fn top(&self) -> Result<Id> {
        let floor = self.marks.last().copied().unwrap_or(0);
        self.stack[floor..].last().copied().ok_or_else(|| "its pickle takes more values than there are".to_owned())
    }

    fn remember(&mut self, index: u32) -> Result<()> {
        let top = self.top()?;
        self.memo.insert(index, top);
        Ok(())
    }

    fn recall(&mut self, index: u32) -> Result<()> {
        let id = self.memo.get(&index).ok_or("its pickle recalls a value that it never made")?;
        self.stack.push(*id);
        Ok(())
    }

    fn append(&mut self, items: Vec<Id>) -> Result<()> {
        let list = self.top()?;
        match &mut self.values.0[list] {
            Value::List(list) => list.extend(items),
            _ => return Err("its pickle appends to what is no list".to_owned()),
        }
        Ok(())
    }

    fn set(&mut self, items: &[Id]) -> Result<()> {
        let dict = self.top()?;
        let (pairs, rest) = items.as_chunks::<2>();
        match &mut self.values.0[dict] {
            Value::Dict(dict) if rest.is_empty() => dict.extend(pairs.iter().map(|&[key, value]| (key, value))),
            _ => return Err("its pickle has keys in what is no dictionary".to_owned()),
        }
        Ok(())
    }

    /// The storage of a persistent id: ('storage', type, key, device, number of elements).
    fn storage(&self, identity: Id) -> Result<Value> {
        let bad = || "a storage is not as `torch.save` writes it".to_owned();
        let Some(&[word, kind, key, _, n_elements]) = self.values.items(identity) else { return Err(bad()) };
        match (self.values.get(word), self.values.get(kind)) {
            (Value::Text(word), &Value::Global(Global::Storage(kind))) if word == "storage" => {
                Ok(Value::Storage { kind, key, n_elements })
            }
            _ => Err(bad()),
        }
    }

    /// Pushes what a call returns: a new value of constant size, or one of its arguments.
    fn call(&mut self, callee: Id, arguments: Id) -> Result<()> {
        let &Value::Global(callee) = self.values.get(callee) else {
            return Err("its pickle calls what is no function".to_owned());
        };
        let arguments = self.values.items(arguments).ok_or("its pickle calls a function without a tuple")?;
        match (callee, arguments) {
            (Global::OrderedDict, []) => self.push(Value::Dict(Vec::new())),
            (Global::Namespace, _) => self.push(Value::Nothing),
            // (storage, offset, size, stride, requires_grad, hooks, metadata)
            (Global::Tensor, &[storage, offset, size, stride, ..]) => {
                self.push(Value::Tensor { storage, offset, size, stride });
            }
            // (data, requires_grad, hooks) and (tuple)
            (Global::Parameter, &[same, ..]) | (Global::Size, &[same]) => self.stack.push(same),
            _ => return Err("a call in its pickle is not as `torch.save` writes it".to_owned()),
        }
        Ok(())
    }
}
