//! Request bodies, decompressed within a bound.

use std::io::Read;

use axum::http::{HeaderMap, header};
use bytes::Bytes;

use crate::error::{ApiError, Kind};

/// Undoes `Content-Encoding`; never holds more than `limit` decompressed bytes, whatever the body claims.
///
/// # Errors
/// 413 beyond `limit`, 400 for damaged data, 415 for an encoding that is not gzip, zstd, deflate or identity.
pub(crate) fn decompress(headers: &HeaderMap, body: Bytes, limit: usize) -> Result<Bytes, ApiError> {
    let encoding = headers.get(header::CONTENT_ENCODING).map_or(Ok("identity"), |value| value.to_str());
    let encoding = encoding.map_err(|_| ApiError::invalid("the Content-Encoding header is not ASCII text"))?;
    match encoding.trim().to_ascii_lowercase().as_str() {
        "identity" | "none" | "" => Ok(body),
        "gzip" | "x-gzip" => read(flate2::read::MultiGzDecoder::new(body.as_ref()), "gzip", limit),
        "deflate" => read(flate2::read::ZlibDecoder::new(body.as_ref()), "deflate", limit),
        "zstd" => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(body.as_ref())
                .map_err(|error| ApiError::invalid(format!("body is not valid zstd: {error}")))?;
            // A frame may ask for a window of gigabytes; 64 MiB is as much as the result may have.
            decoder.window_log_max(26).map_err(|error| ApiError::new(Kind::Internal, error.to_string()))?;
            read(decoder, "zstd", limit)
        }
        other => Err(ApiError::new(
            Kind::UnsupportedMediaType,
            format!("content encoding {other:?} is not supported, supported: [gzip, zstd, deflate]"),
        )),
    }
}

fn read(decoder: impl Read, name: &str, limit: usize) -> Result<Bytes, ApiError> {
    let mut out = Vec::new();
    let read = decoder.take(limit as u64 + 1).read_to_end(&mut out);
    read.map_err(|error| ApiError::invalid(format!("body is not valid {name}: {error}")))?;
    if out.len() > limit {
        return Err(too_large(limit));
    }
    Ok(out.into())
}

pub(crate) fn too_large(limit: usize) -> ApiError {
    ApiError::new(Kind::TooLarge, format!("the request has more than {limit} bytes after decompression"))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn headers(encoding: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(header::CONTENT_ENCODING, encoding.parse().expect("a value"))])
    }

    fn gzip(content: &[u8]) -> Bytes {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(content).expect("writes");
        encoder.finish().expect("finishes").into()
    }

    #[test]
    fn every_encoding_is_undone() {
        let content = b"content".repeat(100);
        let zstd = Bytes::from(zstd::encode_all(content.as_slice(), 3).expect("encodes"));
        for (encoding, body) in [("gzip", gzip(&content)), ("zstd", zstd), ("identity", content.clone().into())] {
            assert_eq!(decompress(&headers(encoding), body, 1 << 20).expect(encoding), content);
        }
        assert_eq!(decompress(&HeaderMap::new(), content.clone().into(), 1).expect("as it is"), content);
    }

    #[test]
    fn bombs_and_garbage_are_refused() {
        let bomb = gzip(&vec![0; 10 << 20]);
        assert!(bomb.len() < 20 << 10);
        assert_eq!(decompress(&headers("gzip"), bomb, 1 << 20).expect_err("refused").kind, Kind::TooLarge);
        for encoding in ["gzip", "zstd", "deflate"] {
            let error = decompress(&headers(encoding), Bytes::from_static(b"garbage"), 1 << 20).expect_err("refused");
            assert_eq!(error.kind, Kind::Invalid, "{encoding}");
        }
        let error = decompress(&headers("br"), Bytes::new(), 1).expect_err("refused");
        assert_eq!(error.kind, Kind::UnsupportedMediaType);
    }
}
