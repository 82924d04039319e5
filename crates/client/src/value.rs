//! Between values of an application and those of a scope, by serde.

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::Error;
use crate::types::{Entry, Register, Value};

/// Content type of a register that holds a value written through serde.
pub(crate) const JSON_TYPE: &str = "application/json";

/// A value as JSON.
pub(crate) fn json<T: Serialize + ?Sized>(value: &T) -> Result<Bytes, Error> {
    let json = serde_json::to_vec(value)
        .map_err(|error| Error::Encode { of: std::any::type_name::<T>(), reason: error.to_string() })?;
    Ok(json.into())
}

/// Whether JSON that serde wrote is an object, and so can be a document.
pub(crate) fn is_object(json: &[u8]) -> bool {
    json.first() == Some(&b'{')
}

/// JSON as a register.
pub(crate) fn register(json: Bytes) -> Value {
    Value::Register(Register { content: json, content_type: JSON_TYPE.to_owned() })
}

/// The value of an entry: a document, a register of JSON or of text, or a counter.
pub(crate) fn decode<T: DeserializeOwned>(entry: &Entry) -> Result<T, Error> {
    if let Some(failure) = &entry.failure {
        return Err(Error::Refused(failure.clone()));
    }
    let fails =
        |reason: String| Error::Decode { key: entry.key.clone(), into: std::any::type_name::<T>(), reason };
    let decoded = match &entry.value {
        Some(Value::Document(json)) => serde_json::from_slice(json),
        Some(Value::Counter(sum)) => serde_json::from_value((*sum).into()),
        Some(Value::Register(Register { content, content_type })) => {
            let kind = content_type.split(';').next().unwrap_or_default().trim();
            if kind == JSON_TYPE || kind.ends_with("+json") {
                serde_json::from_slice(content)
            } else if kind.starts_with("text/") {
                let text = std::str::from_utf8(content).map_err(|error| fails(error.to_string()))?;
                serde_json::from_value(text.into())
            } else {
                return Err(fails(format!("it is a register of type \"{kind}\"; read it as bytes")));
            }
        }
        None => return Err(fails("the answer has no value".to_owned())),
    };
    decoded.map_err(|error| fails(error.to_string()))
}
