//! Large answers are compressed where the client takes gzip.
//!
//! In: an answer whose length is known. Out: the same, or the same in gzip. Never: a small answer compressed, as an HPA's is:
//! that would cost more than it saves. Where it begins, and how hard it tries: apiserver
//! `pkg/endpoints/handlers/responsewriters/writers.go`.

use std::io::Write;

use axum::body::{Body, HttpBody};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use http_body_util::BodyExt;

use super::status::ApiStatus;

/// Answers longer than this are compressed.
const THRESHOLD_BYTES: u64 = 128 * 1024;

/// The answer to a request with these headers.
pub(super) async fn compressed(request: &HeaderMap, answer: Response) -> Response {
    let is_large = answer.size_hint().exact().is_some_and(|length| length > THRESHOLD_BYTES);
    if !is_large {
        return answer;
    }
    let takes_gzip = takes_gzip(request);
    let (mut parts, body) = answer.into_parts();
    parts.headers.append(header::VARY, HeaderValue::from_static("Accept-Encoding"));
    if !takes_gzip {
        return Response::from_parts(parts, body);
    }
    // Its length is known, so it is in memory already.
    let Ok(body) = body.collect().await else { return ApiStatus::internal().into_response() };
    let Ok(body) = gzip(body.to_bytes()).await else {
        return ApiStatus::internal().into_response();
    };
    parts.headers.remove(header::CONTENT_LENGTH);
    parts.headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    Response::from_parts(parts, Body::from(body))
}

/// On a thread of its own, so that other requests go on meanwhile.
async fn gzip(body: Bytes) -> Result<Vec<u8>, tokio::task::JoinError> {
    let work = move || {
        let mut encoder = GzEncoder::new(Vec::with_capacity(body.len() / 4), Compression::fast());
        encoder.write_all(&body).and_then(|()| encoder.finish()).expect("a Vec grows as needed")
    };
    tokio::task::spawn_blocking(work).await
}

/// Whether `Accept-Encoding` names gzip, and not with a quality of 0.
fn takes_gzip(headers: &HeaderMap) -> bool {
    let is_gzip = |element: &str| {
        let mut parts = element.split(';').map(str::trim);
        let named = parts.next().is_some_and(|coding| coding.eq_ignore_ascii_case("gzip"));
        let quality = parts.find_map(|parameter| parameter.strip_prefix("q="));
        named && quality.is_none_or(|quality| quality.parse().is_ok_and(|q: f32| q > 0.0))
    };
    let values = headers.get_all(header::ACCEPT_ENCODING).iter();
    values.filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(',')).any(is_gzip)
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    /// What a client gets of a body of this length: its headers, and the body as it came.
    async fn answer(length: usize, accept_encoding: &str) -> (HeaderMap, Bytes) {
        let content_type = (header::CONTENT_TYPE, "application/json");
        let text = "headroom ".repeat(length / 9 + 1);
        let body = Bytes::copy_from_slice(&text.as_bytes()[..length]);
        let mut request = HeaderMap::new();
        let accepted = accept_encoding.parse().expect("a header value");
        request.insert(header::ACCEPT_ENCODING, accepted);
        let answer = ([content_type], body).into_response();
        let (parts, body) = compressed(&request, answer).await.into_parts();
        (parts.headers, body.collect().await.expect("a body").to_bytes())
    }

    #[tokio::test]
    async fn an_answer_is_compressed_only_if_it_is_large_and_gzip_is_taken() {
        const LARGE: usize = 128 * 1024 + 1;
        for (length, accept_encoding, compressed) in [
            (LARGE, "gzip", true),
            (LARGE, "deflate, GZIP;q=0.5", true),
            (LARGE, "gzip;q=0", false),
            (LARGE, "br, zstd", false),
            (LARGE, "", false),
            (LARGE - 1, "gzip", false),
            (100, "gzip", false),
        ] {
            let (headers, body) = answer(length, accept_encoding).await;
            let is = |name| headers.get(name).and_then(|value| value.to_str().ok());
            let case = format!("{length} {accept_encoding:?}");
            assert_eq!(is(header::CONTENT_ENCODING), compressed.then_some("gzip"), "{case}");
            let varies = (length == LARGE).then_some("Accept-Encoding");
            assert_eq!(is(header::VARY), varies, "{case}");
            assert_eq!(is(header::CONTENT_TYPE), Some("application/json"), "{case}");
            if compressed {
                assert!(body.len() < length / 10, "{case}: {} bytes", body.len());
                let mut text = String::new();
                flate2::read::GzDecoder::new(&*body).read_to_string(&mut text).expect("gzip");
                assert_eq!(text.len(), length, "{case}");
            } else {
                assert_eq!(body.len(), length, "{case}");
            }
        }
    }
}
