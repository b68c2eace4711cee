//! `Content-Encoding` of bodies.

use std::io::{self, Read};

use bytes::Bytes;
use flate2::read::MultiGzDecoder;

use crate::error::{Code, Error, Result};

/// What is decoded at a time.
const CHUNK_BYTES: usize = 64 << 10;

/// How a body is encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Encoding {
    Identity,
    Gzip,
}

impl Encoding {
    /// As the header says.
    ///
    /// # Errors
    /// `unsupported_media_type` for one that is not known.
    pub(super) fn of(header: Option<&str>) -> Result<Self> {
        match header.map(|e| e.trim().to_ascii_lowercase()).as_deref() {
            None | Some("" | "identity") => Ok(Self::Identity),
            Some("gzip" | "x-gzip") => Ok(Self::Gzip),
            Some(other) => Err(Error::new(
                Code::UnsupportedMediaType,
                format!("content-encoding `{other}` is not known here: gzip and identity are"),
            )),
        }
    }
}

/// What `body` was before it was compressed, up to `limit` bytes; `grow` is told of each part before it is kept. CPU work.
///
/// # Errors
/// `bad_request` for a body that is not gzip; `too_large`; what `grow` says.
pub(super) fn inflated(body: &Bytes, limit: usize, mut grow: impl FnMut(usize) -> Result<()>) -> Result<Bytes> {
    let mut decoder = MultiGzDecoder::new(body.as_ref());
    let (mut bytes, mut chunk) = (Vec::new(), vec![0; CHUNK_BYTES]);
    loop {
        let read = match decoder.read(&mut chunk) {
            Ok(0) => return Ok(bytes.into()),
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => {
                let message = format!("the body is not gzip as its header says: {error}");
                return Err(Error::new(Code::BadRequest, message));
            }
        };
        if bytes.len() + read > limit {
            let message = format!("the body has more than {limit} bytes when it is decoded");
            return Err(Error::new(Code::TooLarge, message));
        }
        grow(read)?;
        bytes.extend_from_slice(&chunk[..read]);
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
        let inflated = |body: Bytes, limit| {
            let mut grown = 0;
            let grow = |bytes| {
                grown += bytes;
                Ok(())
            };
            let inflated = inflated(&body, limit, grow)?;
            assert_eq!(grown, inflated.len());
            Ok::<_, Error>(inflated)
        };
        let two = [gzip(b"a\n"), gzip(b"b\n")].concat();
        assert_eq!(inflated(two.into(), 4).unwrap(), "a\nb\n");
        assert_eq!(inflated(gzip(&[b'x'; 100_000]), 100_000).unwrap().len(), 100_000);
        assert_eq!(inflated(gzip(&[b'x'; 100_000]), 99_999).unwrap_err().code, Code::TooLarge);
        assert_eq!(inflated(Bytes::from_static(b"a"), 9).unwrap_err().code, Code::BadRequest);
    }

    #[test]
    fn encodings_are_known_by_their_names() {
        for (header, encoding) in
            [(None, Encoding::Identity), (Some("Identity"), Encoding::Identity), (Some(" GZip "), Encoding::Gzip)]
        {
            assert_eq!(Encoding::of(header).unwrap(), encoding);
        }
        let error = Encoding::of(Some("br")).unwrap_err();
        assert_eq!((error.code.status().as_u16(), error.code), (415, Code::UnsupportedMediaType));
        assert_eq!(error.message, "content-encoding `br` is not known here: gzip and identity are");
    }
}
