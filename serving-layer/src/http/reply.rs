//! Responses.

use serde::Serialize;
use warp::Reply;
use warp::http::StatusCode;
use warp::http::header::{CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER};
use warp::reply::Response;

use crate::ask::Answer;
use crate::encode::{self, Format};
use crate::error::{Code, Error, Result};

/// Where `meta` stands when the body has no place for it.
pub(crate) const META: HeaderName = HeaderName::from_static("watershed-meta");

pub(crate) fn body(status: StatusCode, content_type: &'static str, bytes: Vec<u8>) -> Response {
    let mut response = bytes.into_response();
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// A document as JSON.
pub(crate) fn json(status: StatusCode, document: &impl Serialize) -> Response {
    match serde_json::to_vec(document) {
        Ok(bytes) => body(status, Format::Json.content_type(), bytes),
        Err(error) => failed(&Error::internal(error)),
    }
}

/// An error, as all errors look.
pub(crate) fn failed(error: &Error) -> Response {
    let mut response = body(error.code.status(), Format::Json.content_type(), error.to_json().into_bytes());
    if matches!(error.code, Code::TooManyRequests | Code::NotReady | Code::Incomplete) {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}

/// Rows in the format that was asked for, with `meta` in the body or, where that has no place for it, in a header.
///
/// Costs CPU in proportion to the rows: to be called where that does no harm.
///
/// # Errors
/// `bad_sql` when the rows have no form in the format.
pub(crate) fn rows(format: Format, answer: &Answer) -> Result<Response> {
    let unfit = |e: arrow::error::ArrowError| Error::new(Code::BadSql, e.to_string());
    let meta = serde_json::to_vec(&answer.meta).map_err(Error::internal)?;
    let rows = encode::rows(format, &answer.rows.schema, &answer.rows.batches).map_err(unfit)?;
    if format == Format::Json {
        let bytes = [&b"{\"rows\":"[..], &rows, b",\"meta\":", &meta, b"}"].concat();
        return Ok(body(StatusCode::OK, format.content_type(), bytes));
    }
    let mut response = body(StatusCode::OK, format.content_type(), rows);
    let meta = HeaderValue::from_bytes(&ascii(&meta)).map_err(Error::internal)?;
    response.headers_mut().insert(META, meta);
    Ok(response)
}

/// JSON in ASCII alone, as headers want it.
fn ascii(json: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(json.len());
    for c in String::from_utf8_lossy(json).chars() {
        match c {
            '\x20'..='\x7e' => out.push(c as u8),
            _ => {
                let mut units = [0; 2];
                for unit in c.encode_utf16(&mut units) {
                    out.extend_from_slice(format!("\\u{unit:04x}").as_bytes());
                }
            }
        }
    }
    out
}
