//! A program with jemalloc, as services are: its heap samples carry labels, and sampling is switched while it runs.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};

use flate2::read::GzDecoder;
use headroom::Agent;
use headroom::agent::spawn;
use headroom::pprof::labels::{Labelled, Labels, Name};
use pprof::protos::{Message as _, Profile, Sample};

headroom::profiled_jemalloc!();

const MEBIBYTE: usize = 1 << 20;

/// Status and body.
fn ask(address: SocketAddr, method: &str, path: &str) -> (u16, Vec<u8>) {
    let mut stream = TcpStream::connect(address).expect("the agent listens");
    let request = format!("{method} {path} HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).expect("the agent reads");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("the agent answers");
    let head = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").expect("a head");
    let text = String::from_utf8_lossy(&answer[..head]).into_owned();
    let status = text.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status");
    (status, answer[head + 4..].to_vec())
}

fn heap(address: SocketAddr) -> Profile {
    let (status, body) = ask(address, "GET", "/debug/pprof/heap");
    assert_eq!(status, 200, "{}", String::from_utf8_lossy(&body));
    let mut bytes = Vec::new();
    GzDecoder::new(body.as_slice()).read_to_end(&mut bytes).expect("gzip");
    Profile::decode(bytes.as_slice()).expect("profile.proto")
}

fn text(profile: &Profile, index: i64) -> &str {
    &profile.string_table[usize::try_from(index).expect("small")]
}

/// The labels of a sample, numbers without their unit.
fn labels(profile: &Profile, sample: &Sample) -> BTreeMap<String, String> {
    let value = |label: &pprof::protos::Label| match label.str {
        0 => label.num.to_string(),
        text_index => text(profile, text_index).to_owned(),
    };
    sample.label.iter().map(|label| (text(profile, label.key).to_owned(), value(label))).collect()
}

/// Bytes in use and allocated that carry a label of that text.
fn bytes_of(profile: &Profile, key: &str, value: &str) -> (i64, i64) {
    let has = |sample: &&Sample| labels(profile, sample).get(key).is_some_and(|text| text == value);
    let samples = profile.sample.iter().filter(has);
    samples.fold((0, 0), |(in_use, all), sample| (in_use + sample.value[3], all + sample.value[1]))
}

fn hold(mebibytes: usize) -> Vec<Vec<u8>> {
    (0..mebibytes).map(|_| black_box(vec![1; MEBIBYTE])).collect()
}

/// One test: the allocator's settings belong to the process.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heap_samples_carry_labels_and_sampling_is_switched() {
    let free_port = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let agent = Agent::builder().service("test").bind(free_port).start().expect("a free port");
    let address = agent.local_addr();

    let site = format!("tests/jemalloc.rs:{}", line!() + 1);
    let held = spawn(async { hold(64) }).await.expect("it does not panic");
    let request = Labelled::enter(|labels| Labels { endpoint: Name::of("POST /hold"), ..labels });
    let of_request = hold(32);
    drop(request);
    let expected = i64::try_from(64 * MEBIBYTE).expect("small");
    let is_near = |bytes: i64, expected: i64| (bytes - expected).abs() < expected / 4;
    let profile = heap(address);
    let (in_use, all) = bytes_of(&profile, "task", &site);
    assert!(is_near(in_use, expected) && is_near(all, expected), "{in_use} {all}");
    let (in_use, _) = bytes_of(&profile, "endpoint", "POST /hold");
    assert!(is_near(in_use, expected / 2), "{in_use}");
    let sizes: Vec<_> = profile
        .sample
        .iter()
        .map(|sample| labels(&profile, sample))
        .filter(|labels| labels.get("task") == Some(&site))
        .filter_map(|labels| labels.get("bytes")?.parse::<usize>().ok())
        .collect();
    assert!(sizes.iter().any(|bytes| (MEBIBYTE..MEBIBYTE * 5 / 4).contains(bytes)), "{sizes:?}");
    drop((held, of_request));
    let profile = heap(address);
    let (in_use, all) = bytes_of(&profile, "task", &site);
    assert!(in_use < expected / 16 && is_near(all, expected), "{in_use} {all}");

    let sampling = "/debug/pprof/heap/sampling";
    let settings = |method, query: &str| {
        let (status, body) = ask(address, method, &format!("{sampling}{query}"));
        (status, String::from_utf8(body).expect("UTF-8"))
    };
    let on = (200, "active: true\ninterval_bytes: 524288\n".to_owned());
    assert_eq!(settings("GET", ""), on);
    assert_eq!(settings("POST", "?active=0").1, "active: false\ninterval_bytes: 524288\n");
    let unseen = spawn(async { hold(16) }).await.expect("it does not panic");
    let profile = heap(address);
    assert!(profile.string_table.iter().any(|text| text.starts_with("sampling is off now")));
    assert_eq!(
        settings("POST", "?active=1&interval_bytes=65536"),
        (200, "active: true\ninterval_bytes: 65536\n".to_owned())
    );
    // Another interval forgets what was sampled at the former.
    let profile = heap(address);
    assert_eq!(profile.period, 65_536);
    assert_eq!(bytes_of(&profile, "task", &site), (0, 0));
    assert_eq!(settings("POST", "?interval_bytes=1000").0, 400);
    assert_eq!(settings("POST", "?active=maybe").0, 400);
    assert_eq!(settings("POST", "?active=1&interval_bytes=524288"), on);
    drop(unseen);
}
