//! `Content-Encoding` of bodies.

use std::io::Read;

use bytes::Bytes;
use flate2::read::MultiGzDecoder;

use crate::error::{Code, Error, Result};

/// The body as it was before it was encoded, up to `limit` bytes.
///
/// # Errors
/// `unsupported_media_type` for an encoding that is not known; `bad_request` for a body that is not in the one that it
/// says; `too_large`.
pub(super) fn decoded(encoding: Option<&str>, body: Bytes, limit: usize) -> Result<Bytes> {
    match encoding.map(|e| e.trim().to_ascii_lowercase()).as_deref() {
        None | Some("" | "identity") => Ok(body),
        Some("gzip" | "x-gzip") => {
            let mut bytes = Vec::new();
            let most = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1);
            let read = MultiGzDecoder::new(body.as_ref()).take(most).read_to_end(&mut bytes);
            read.map_err(|e| Error::new(Code::BadRequest, format!("the body is not gzip as its header says: {e}")))?;
            if bytes.len() > limit {
                let message = format!("the body has more than {limit} bytes when it is decoded");
                return Err(Error::new(Code::TooLarge, message));
            }
            Ok(bytes.into())
        }
        Some(other) => Err(Error::new(
            Code::UnsupportedMediaType,
            format!("content-encoding `{other}` is not known here: gzip and identity are"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn gzip(text: &[u8]) -> Bytes {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(text).unwrap();
        encoder.finish().unwrap().into()
    }

    #[test]
    fn bodies_are_decoded_up_to_the_limit() {
        let plain = Bytes::from_static(b"a");
        assert_eq!(decoded(None, plain.clone(), 9).unwrap(), "a");
        assert_eq!(decoded(Some("Identity"), plain.clone(), 9).unwrap(), "a");
        let two = [gzip(b"a\n"), gzip(b"b\n")].concat();
        assert_eq!(decoded(Some("gzip"), two.into(), 4).unwrap(), "a\nb\n");
        assert_eq!(decoded(Some("gzip"), gzip(&[b'x'; 100_000]), 99_999).unwrap_err().code, Code::TooLarge);
        assert_eq!(decoded(Some("gzip"), plain.clone(), 9).unwrap_err().code, Code::BadRequest);
        let error = decoded(Some("br"), plain, 9).unwrap_err();
        assert_eq!((error.code.status().as_u16(), error.code), (415, Code::UnsupportedMediaType));
        assert_eq!(error.message, "content-encoding `br` is not known here: gzip and identity are");
    }
}
