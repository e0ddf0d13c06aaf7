//! The protobuf wire format, read without copying (protobuf.dev, "Encoding").

use thiserror::Error;

/// Bytes that are not a protobuf message of the expected type.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum WireError {
    #[error("message is cut short")]
    Short,
    #[error("varint is longer than 10 bytes")]
    Varint,
    #[error("field {0} has wire type {1}")]
    WireType(u32, u8),
    #[error("messages are nested more than {0} deep")]
    Depth(usize),
}

/// Deepest nesting that is accepted, as prost and the C++ implementation do.
pub(crate) const DEPTH_MAX: usize = 100;

/// A field's value, typed as far as the wire tells.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Value<'a> {
    Varint(u64),
    Fixed64(u64),
    Bytes(&'a [u8]),
    Fixed32(u32),
}

impl<'a> Value<'a> {
    pub(crate) fn wire_type(self) -> u8 {
        match self {
            Self::Varint(_) => 0,
            Self::Fixed64(_) => 1,
            Self::Bytes(_) => 2,
            Self::Fixed32(_) => 5,
        }
    }

    /// The bytes of a string, bytes or message field; empty for any other, which a checked message does not have.
    pub(crate) fn bytes(self) -> &'a [u8] {
        if let Self::Bytes(bytes) = self { bytes } else { &[] }
    }

    pub(crate) fn number(self) -> u64 {
        match self {
            Self::Varint(value) | Self::Fixed64(value) => value,
            Self::Fixed32(value) => value.into(),
            Self::Bytes(_) => 0,
        }
    }

    pub(crate) fn double(self) -> f64 {
        f64::from_bits(self.number())
    }
}

/// Reads the fields of one message in order.
#[derive(Debug, Clone)]
pub(crate) struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    pub(crate) fn of(message: &'a [u8]) -> Self {
        Self { rest: message }
    }

    /// Bytes not yet read.
    pub(crate) fn rest(&self) -> &'a [u8] {
        self.rest
    }

    pub(crate) fn next_field(&mut self) -> Result<Option<(u32, Value<'a>)>, WireError> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let key = self.varint()?;
        let field = u32::try_from(key >> 3).map_err(|_| WireError::Varint)?;
        let value = match key & 7 {
            0 => Value::Varint(self.varint()?),
            1 => Value::Fixed64(u64::from_le_bytes(self.array()?)),
            2 => {
                let len = usize::try_from(self.varint()?).map_err(|_| WireError::Short)?;
                Value::Bytes(self.take(len)?)
            }
            5 => Value::Fixed32(u32::from_le_bytes(self.array()?)),
            other => return Err(WireError::WireType(field, other as u8)),
        };
        if field == 0 {
            return Err(WireError::WireType(0, value.wire_type()));
        }
        Ok(Some((field, value)))
    }

    #[inline]
    pub(crate) fn varint(&mut self) -> Result<u64, WireError> {
        let mut value = 0;
        for (at, byte) in self.rest.iter().take(10).enumerate() {
            value |= u64::from(byte & 0x7f) << (7 * at);
            if byte & 0x80 == 0 {
                self.rest = &self.rest[at + 1..];
                return Ok(value);
            }
        }
        Err(if self.rest.len() >= 10 { WireError::Varint } else { WireError::Short })
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], WireError> {
        let (head, rest) = self.rest.split_at_checked(len).ok_or(WireError::Short)?;
        self.rest = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        self.take(N)?.try_into().map_err(|_| WireError::Short)
    }
}

/// Iterating a checked message: ends at the end, or where a message that was never checked turns out to be damaged.
impl<'a> Iterator for Fields<'a> {
    type Item = (u32, Value<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        self.next_field().ok().flatten()
    }
}

/// Values of a repeated fixed64 or double field, packed or not.
pub(crate) fn packed_fixed64(value: Value<'_>, mut each: impl FnMut(u64)) {
    match value {
        Value::Bytes(bytes) => {
            for chunk in bytes.chunks_exact(8) {
                each(u64::from_le_bytes(chunk.try_into().unwrap_or_default()));
            }
        }
        other => each(other.number()),
    }
}

/// Values of a repeated varint field, packed or not.
pub(crate) fn packed_varint(value: Value<'_>, mut each: impl FnMut(u64)) {
    match value {
        Value::Bytes(bytes) => {
            let mut fields = Fields::of(bytes);
            while let (false, Ok(value)) = (fields.rest.is_empty(), fields.varint()) {
                each(value);
            }
        }
        other => each(other.number()),
    }
}

/// What a message type may contain; unknown fields are skipped.
#[derive(Debug)]
pub(crate) struct Shape {
    pub(crate) fields: &'static [(u32, Kind)],
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Kind {
    Varint,
    Fixed64,
    Fixed32,
    Bytes,
    Text,
    Message(&'static Shape),
    PackedFixed64,
    PackedVarint,
}

/// Checks that `message` and everything nested in it is well-formed; returns whether all its texts are UTF-8.
pub(crate) fn check(shape: &'static Shape, message: &[u8], depth: usize) -> Result<bool, WireError> {
    if depth > DEPTH_MAX {
        return Err(WireError::Depth(DEPTH_MAX));
    }
    let mut fields = Fields::of(message);
    let mut utf8 = true;
    while let Some((field, value)) = fields.next_field()? {
        let Some((_, kind)) = shape.fields.iter().find(|(known, _)| *known == field) else { continue };
        match (kind, value) {
            (Kind::Varint | Kind::PackedVarint, Value::Varint(_))
            | (Kind::Fixed64 | Kind::PackedFixed64, Value::Fixed64(_))
            | (Kind::Fixed32, Value::Fixed32(_))
            | (Kind::Bytes, Value::Bytes(_)) => {}
            (Kind::Text, Value::Bytes(text)) => utf8 &= std::str::from_utf8(text).is_ok(),
            (Kind::Message(shape), Value::Bytes(nested)) => utf8 &= check(shape, nested, depth + 1)?,
            (Kind::PackedFixed64, Value::Bytes(packed)) if packed.len() % 8 == 0 => {}
            (Kind::PackedVarint, Value::Bytes(packed)) => {
                let mut packed = Fields::of(packed);
                while !packed.rest.is_empty() {
                    packed.varint()?;
                }
            }
            (_, value) => return Err(WireError::WireType(field, value.wire_type())),
        }
    }
    Ok(utf8)
}

/// Appends a length-delimited field.
pub(crate) fn put_bytes(out: &mut Vec<u8>, field: u32, bytes: &[u8]) {
    put_varint(out, u64::from(field << 3 | 2));
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    static LEAF: Shape = Shape { fields: &[(1, Kind::Text), (2, Kind::PackedVarint)] };
    static TREE: Shape = Shape { fields: &[(1, Kind::Message(&TREE)), (2, Kind::Message(&LEAF))] };

    #[test]
    fn nesting_is_bounded() {
        let mut message = Vec::new();
        for _ in 0..DEPTH_MAX {
            let mut outer = Vec::new();
            put_bytes(&mut outer, 1, &message);
            message = outer;
        }
        assert_eq!(check(&TREE, &message, 0), Ok(true));
        let mut deeper = Vec::new();
        put_bytes(&mut deeper, 1, &message);
        assert_eq!(check(&TREE, &deeper, 0), Err(WireError::Depth(DEPTH_MAX)));
    }

    #[test]
    fn damage_is_told_from_unknown_fields() {
        assert_eq!(check(&LEAF, &[0x7a, 0x01, 0xff], 0), Ok(true), "field 15 is unknown");
        assert_eq!(check(&LEAF, &[0x0a, 0x05, b'x'], 0), Err(WireError::Short));
        assert_eq!(check(&LEAF, &[0x08, 0x05], 0), Err(WireError::WireType(1, 0)));
        assert_eq!(check(&LEAF, &[0x0a, 0x01, 0xff], 0), Ok(false), "not UTF-8");
        assert_eq!(check(&LEAF, &[0xff; 11], 0), Err(WireError::Varint));
        assert!(check(&LEAF, b"not protobuf at all", 0).is_err());
    }
}
