//! What a message carries: JSON bytes, or bytes with a content type; exact or refused.
//!
//! JSON nests at most 30 levels deep and has integers of 64 bits; what would come out different at the other end is
//! refused. `google.protobuf.Value` lives at the edge only: it becomes JSON when it is read, and JSON becomes a
//! `Value` only for a peer that asked that way.

use bytes::Bytes;
use prost_types::value::Kind;
use serde::Serialize;
use serde_json::{Map, Number, Value};

use crate::error::{Error, Result};
use crate::limits::PAYLOAD_DEPTH;
use crate::names::shown;

pub(crate) const JSON: &str = "application/json";
const BINARY: &str = "application/octet-stream";
/// Up to here a double tells every whole number from its neighbours.
const EXACT: u64 = 1 << 53;

/// What a message carries, encoded.
#[derive(Clone, Debug, PartialEq)]
pub struct Payload {
    /// Empty: JSON.
    content_type: String,
    bytes: Bytes,
}

impl Payload {
    /// JSON `null`.
    pub(crate) fn null() -> Self {
        Self::from_json(Bytes::from_static(b"null"))
    }

    pub(crate) fn from_json(bytes: Bytes) -> Self {
        Self { content_type: String::new(), bytes }
    }

    /// Bytes that are no JSON, such as an `image/png`. An empty content type means `application/octet-stream`.
    pub fn data(content_type: impl Into<String>, content: impl Into<Bytes>) -> Self {
        let mut content_type = content_type.into();
        if content_type.is_empty() {
            content_type = BINARY.into();
        }
        Self { content_type, bytes: content.into() }
    }

    /// JSON of whatever can be serialized. Refuses what JSON cannot say exactly, but for NaN and infinity,
    /// which serde_json says as `null`.
    pub fn json(value: &(impl Serialize + ?Sized)) -> Result<Self> {
        let bytes = serde_json::to_vec(value)
            .map_err(|error| Error::Invalid(format!("the value cannot be said in JSON: {error}")))?;
        if may_be_inexact(&bytes) || may_be_deep(&bytes) {
            parse(&bytes)?;
        }
        Ok(Self::from_json(bytes.into()))
    }

    /// Whether it is JSON.
    pub fn is_json(&self) -> bool {
        self.content_type.is_empty()
    }

    pub(crate) fn is_null(&self) -> bool {
        self.is_json() && self.bytes.as_ref() == b"null"
    }

    /// Its content type; `application/json` for JSON.
    pub fn content_type(&self) -> &str {
        if self.is_json() { JSON } else { &self.content_type }
    }

    /// The bytes themselves: JSON, or data.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The JSON value. Data has none: it is `null`.
    pub(crate) fn parse(&self) -> Result<Value> {
        if self.is_json() { parse(&self.bytes) } else { Ok(Value::Null) }
    }

    /// As a `google.protobuf.Value`; refuses integers beyond 2^53.
    pub(crate) fn to_value(&self) -> Result<prost_types::Value> {
        to_value(&self.parse()?)
    }

    /// From a `google.protobuf.Value`; refuses what is not exact or nested too deep.
    pub(crate) fn from_value(value: prost_types::Value) -> Result<Self> {
        Self::json(&from_value(value, PAYLOAD_DEPTH)?)
    }
}

/// What can be sent: whatever serde can serialize, as JSON, or a [`Payload`].
pub trait IntoPayload {
    /// Encoded.
    fn into_payload(self) -> Result<Payload>;
}

impl<T: Serialize> IntoPayload for T {
    fn into_payload(self) -> Result<Payload> {
        Payload::json(&self)
    }
}

impl IntoPayload for Payload {
    fn into_payload(self) -> Result<Payload> {
        Ok(self)
    }
}

fn too_deep() -> Error {
    Error::LimitExceeded(format!("the payload is nested deeper than {PAYLOAD_DEPTH} levels"))
}

/// The value of JSON bytes.
fn parse(bytes: &[u8]) -> Result<Value> {
    let value: Value = serde_json::from_slice(bytes).map_err(|error| {
        if error.to_string().contains("recursion limit") {
            return too_deep();
        }
        Error::Invalid(format!("the payload is no JSON that can be read: {}", shown(&error.to_string())))
    })?;
    if may_be_deep(bytes) && depth(&value) > PAYLOAD_DEPTH {
        return Err(too_deep());
    }
    if may_be_inexact(bytes) && has_huge_integer(bytes) {
        return Err(Error::Invalid("the payload is no JSON that can be read: an integer is beyond 64 bits".into()));
    }
    Ok(value)
}

fn may_be_deep(bytes: &[u8]) -> bool {
    bytes.iter().filter(|b| matches!(b, b'[' | b'{')).count() > PAYLOAD_DEPTH
}

fn depth(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
        Value::Object(fields) => 1 + fields.values().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}

/// Whether so many digits stand in a row that an integer might be beyond 64 bits: 19 at least.
fn may_be_inexact(bytes: &[u8]) -> bool {
    bytes.len() >= 19 && bytes.split(|b| !b.is_ascii_digit()).any(|run| run.len() >= 19)
}

/// serde_json reads an integer beyond 64 bits as a double, without a word. `bytes` are valid JSON.
fn has_huge_integer(bytes: &[u8]) -> bool {
    let mut at = 0;
    while at < bytes.len() {
        match bytes[at] {
            b'"' => {
                at += 1;
                while bytes[at] != b'"' {
                    at += if bytes[at] == b'\\' { 2 } else { 1 };
                }
                at += 1;
            }
            b'-' | b'0'..=b'9' => {
                let rest = &bytes[at..];
                let end = rest.iter().position(|b| !b"+-.eE0123456789".contains(b)).unwrap_or(rest.len());
                let text = std::str::from_utf8(&rest[..end]).unwrap_or_default();
                let whole = !text.contains(['.', 'e', 'E']);
                if whole && text.parse::<i64>().is_err() && text.parse::<u64>().is_err() {
                    return true;
                }
                at += end;
            }
            _ => at += 1,
        }
    }
    false
}

fn to_value(value: &Value) -> Result<prost_types::Value> {
    let kind = match value {
        Value::Null => Kind::NullValue(0),
        Value::Bool(flag) => Kind::BoolValue(*flag),
        Value::String(text) => Kind::StringValue(text.clone()),
        Value::Number(number) => {
            let size = number.as_i64().map(i64::unsigned_abs).or_else(|| number.as_u64());
            if size.is_some_and(|size| size > EXACT) {
                return Err(Error::Invalid(format!(
                    "{number} is beyond 2^53, where `value` is not exact: ask with `json`"
                )));
            }
            Kind::NumberValue(number.as_f64().unwrap_or_default())
        }
        Value::Array(items) => {
            let values = items.iter().map(to_value).collect::<Result<_>>()?;
            Kind::ListValue(prost_types::ListValue { values })
        }
        Value::Object(fields) => {
            let fields =
                fields.iter().map(|(key, below)| Ok((key.clone(), to_value(below)?))).collect::<Result<_>>()?;
            Kind::StructValue(prost_types::Struct { fields })
        }
    };
    Ok(prost_types::Value { kind: Some(kind) })
}

fn from_value(value: prost_types::Value, depth: usize) -> Result<Value> {
    Ok(match value.kind {
        None | Some(Kind::NullValue(_)) => Value::Null,
        Some(Kind::BoolValue(flag)) => Value::Bool(flag),
        Some(Kind::StringValue(text)) => Value::String(text),
        Some(Kind::NumberValue(number)) => Value::Number(from_double(number)?),
        Some(_) if depth == 0 => return Err(too_deep()),
        Some(Kind::ListValue(list)) => {
            Value::Array(list.values.into_iter().map(|item| from_value(item, depth - 1)).collect::<Result<_>>()?)
        }
        Some(Kind::StructValue(fields)) => {
            let mut map = Map::new();
            for (key, below) in fields.fields {
                map.insert(key, from_value(below, depth - 1)?);
            }
            Value::Object(map)
        }
    })
}

fn from_double(number: f64) -> Result<Number> {
    if number.fract() == 0.0 {
        #[allow(clippy::cast_precision_loss)] // a power of two
        if number.abs() > EXACT as f64 {
            return Err(Error::Invalid(format!(
                "{number} is beyond 2^53, where `value` is not exact: send it as `json`"
            )));
        }
        #[allow(clippy::cast_possible_truncation)] // it is whole, and within 2^53
        return Ok(Number::from(number as i64));
    }
    Number::from_f64(number).ok_or_else(|| Error::Invalid(format!("{number} cannot be said in JSON")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn nested(levels: usize) -> Value {
        (0..levels).fold(json!(1), |below, _| json!([below]))
    }

    #[test]
    fn integers_are_exact_or_refused() {
        for text in [
            "18446744073709551615",
            "-9223372036854775808",
            "\"99999999999999999999999\"",
            "1e30",
            "0.12345678901234567890",
        ] {
            assert!(parse(text.as_bytes()).is_ok(), "{text}");
        }
        for text in ["18446744073709551616", "-9223372036854775809", "[\"x\\\"\", 99999999999999999999999]"] {
            assert!(matches!(parse(text.as_bytes()), Err(Error::Invalid(_))), "{text}");
        }
        assert!(Payload::json(&u128::MAX).is_err());
    }

    #[test]
    fn thirty_levels_are_the_most() {
        assert!(Payload::json(&nested(30)).is_ok());
        assert!(matches!(Payload::json(&nested(31)), Err(Error::LimitExceeded(_))));
        let deep = format!("{}{}", "[".repeat(1000), "]".repeat(1000));
        assert!(matches!(parse(deep.as_bytes()), Err(Error::LimitExceeded(_))));
    }

    #[test]
    fn a_value_becomes_json_and_back() {
        let value = json!({"a": [1, -2.5, null, true], "b": {"c": "d"}});
        let payload = Payload::json(&value).unwrap();
        let back = Payload::from_value(payload.to_value().unwrap()).unwrap().parse().unwrap();
        assert_eq!(back, value);
        assert!(Payload::json(&json!(9_007_199_254_740_993_i64)).unwrap().to_value().is_err());
        let nan = prost_types::Value { kind: Some(Kind::NumberValue(f64::NAN)) };
        assert!(Payload::from_value(nan).is_err());
    }
}
