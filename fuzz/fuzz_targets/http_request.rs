#![no_main]

use headroom::adapter::RequestInfo;
use headroom::fuzzing::{read_any_accept, read_any_symbol_list, read_any_traceparent};
use http::{Method, Uri};
use libfuzzer_sys::fuzz_target;

// What clients send: the path and query of the API, `Accept`, `traceparent`, a list of addresses.
fuzz_target!(|text: &str| {
    if let Ok(uri) = text.parse::<Uri>() {
        for method in [Method::GET, Method::POST, Method::DELETE, Method::OPTIONS] {
            let info = RequestInfo::of(&method, &uri);
            // A resource has at least its group, version and one word: nothing else is authorized as one.
            assert!(info.resource.is_none() || uri.path().contains("apis/") || uri.path().contains('%'));
        }
    }
    read_any_accept(text);
    read_any_traceparent(text.as_bytes());
    read_any_symbol_list(text);
});
