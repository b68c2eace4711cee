//! The parameters of a request, from its query string.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use percent_encoding::percent_decode_str;
use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use watershed_shared::offsets::{Offset, OffsetVector, PartitionId};

use crate::encode::Format;
use crate::error::{Code, Error, Result};

/// The query string, decoded; each name at most once.
#[derive(Debug, Default)]
pub(crate) struct Params(BTreeMap<String, String>);

impl Params {
    /// # Errors
    /// `bad_parameter` for a name that is not in `known`, or twice there: a misspelt filter must not pass as none.
    pub(crate) fn parse(query: &str, known: &[&str]) -> Result<Self> {
        let mut params = BTreeMap::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let (name, value) = (decoded(name)?, decoded(value)?);
            if !known.contains(&name.as_str()) {
                return Err(Error::unknown(Code::BadParameter, "parameter", &name, known.iter().copied()));
            }
            if params.contains_key(&name) {
                return Err(Error::bad_parameter(&name, "it stands there twice"));
            }
            params.insert(name, value);
        }
        Ok(Self(params))
    }

    pub(crate) fn text(&self, name: &str) -> Option<String> {
        self.0.get(name).cloned()
    }

    /// # Errors
    /// `bad_parameter` when it does not parse; `expected` says as what.
    pub(crate) fn get<T: FromStr>(&self, name: &str, expected: &str) -> Result<Option<T>> {
        let Some(text) = self.0.get(name) else { return Ok(None) };
        let parsed = text.parse().map_err(|_| Error::bad_parameter(name, format!("`{text}` is not {expected}")));
        parsed.map(Some)
    }

    /// `?name`, `?name=true`, `?name=false`.
    pub(crate) fn flag(&self, name: &str) -> Result<bool> {
        match self.0.get(name).map(String::as_str) {
            None | Some("false") => Ok(false),
            Some("true" | "") => Ok(true),
            Some(other) => Err(Error::bad_parameter(name, format!("`{other}` is neither true nor false"))),
        }
    }

    /// `wait_for={"0":1200}`.
    pub(crate) fn offsets(&self, name: &str) -> Result<Option<OffsetVector>> {
        let Some(text) = self.0.get(name) else { return Ok(None) };
        serde_json::from_str::<Offsets>(text)
            .map(|offsets| Some(offsets.0))
            .map_err(|e| Error::bad_parameter(name, format!("it is not {{\"<partition>\": <offset>, …}}: {e}")))
    }

    /// `format`, else the best of `Accept`, else JSON.
    pub(crate) fn format(&self, accept: Option<&str>) -> Result<Format> {
        if let Some(name) = self.0.get("format") {
            let known = "json, ndjson, csv, arrow or parquet";
            return Format::parse(name)
                .ok_or_else(|| Error::bad_parameter("format", format!("`{name}` is not {known}")));
        }
        // A client that takes none of ours gets JSON, as most servers do.
        Ok(accept.and_then(Format::negotiate).unwrap_or(Format::Json))
    }
}

/// Percent-encoded, a blank also as `+`. Other bytes than those of UTF-8 would match nothing without a word.
fn decoded(text: &str) -> Result<String> {
    let blanks = text.replace('+', " ");
    let decoded = percent_decode_str(&blanks).decode_utf8();
    decoded.map(Cow::into_owned).map_err(|e| {
        let message = format!("the query string is not UTF-8 once it is percent-decoded: `{text}`: {e}");
        Error::new(Code::BadParameter, message)
    })
}

/// Offsets as a client writes them: each partition once.
#[derive(Debug, Default)]
pub(crate) struct Offsets(pub(crate) OffsetVector);

impl<'de> Deserialize<'de> for Offsets {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Pairs;
        impl<'de> Visitor<'de> for Pairs {
            type Value = Offsets;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object {\"<partition>\": <offset>, …}")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut pairs: A) -> std::result::Result<Offsets, A::Error> {
                let mut offsets = OffsetVector::new();
                while let Some((partition, offset)) = pairs.next_entry::<PartitionId, Offset>()? {
                    if offsets.get(partition).is_some() {
                        return Err(A::Error::custom(format!("partition {partition} stands there twice")));
                    }
                    offsets.set(partition, offset);
                }
                Ok(Offsets(offsets))
            }
        }
        deserializer.deserialize_map(Pairs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_decoded_and_checked() {
        let params =
            Params::parse("where=a%3D1%20AND+b&wait_for=%7B%220%22%3A5%7D&flag", &["where", "wait_for", "flag"])
                .unwrap();
        assert_eq!(params.text("where").unwrap(), "a=1 AND b");
        assert_eq!(params.offsets("wait_for").unwrap(), Some([(0, 5)].into()));
        assert!(params.flag("flag").unwrap());
        assert!(!params.flag("other").unwrap());
    }

    #[test]
    fn what_is_not_known_is_refused() {
        let error = Params::parse("wehre=a", &["where", "limit"]).unwrap_err();
        assert_eq!(error.message, "there is no parameter `wehre`; did you mean `where`?");
        assert!(Params::parse("limit=1&limit=2", &["limit"]).is_err());
        let error = Params::parse("where=a%3D'%ff%fe'", &["where"]).unwrap_err();
        assert!(error.message.contains("not UTF-8") && error.code == Code::BadParameter, "{error:?}");
        let params = Params::parse("wait_for={%220%22:1,%220%22:5}", &["wait_for"]).unwrap();
        assert!(params.offsets("wait_for").unwrap_err().message.contains("partition 0 stands there twice"));
        let params = Params::parse("limit=x", &["limit"]).unwrap();
        assert_eq!(
            params.get::<usize>("limit", "a number").unwrap_err().message,
            "parameter `limit`: `x` is not a number"
        );
    }
}
