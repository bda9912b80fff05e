//! The page at `/debug/pprof/`, laid out as Go's: programs read its table.
//!
//! In: the count of each profile. Out: HTML. Never: text from outside.

use std::fmt::Write;

use tokio::runtime::Handle;

use super::kind::Kind;

/// What is no snapshot: name, what it does.
const OTHERS: [(&str, &str); 5] = [
    ("cmdline", "The command line, its arguments separated by NUL."),
    ("mutex", "Not served: waits for locks are not sampled."),
    (
        "profile",
        "CPU time by stack, for <code>seconds</code> (1 to 300, default 30); then use go tool pprof.",
    ),
    (
        "symbol",
        "Names of addresses, from a GET query or a POST body of <code>0xADDRESS+0xADDRESS</code>.",
    ),
    ("trace", "Not served: Rust has no execution tracer."),
];

const HEAD: &str = "<html>
<head>
<title>/debug/pprof/</title>
<style>
.profile-name{
\tdisplay:inline-block;
\twidth:6rem;
}
</style>
</head>
<body>
/debug/pprof/
<br>
<p>With the query parameter debug=1 a profile comes as text; with seconds=N, as what changed in N seconds.</p>
<br>
Types of profiles available:
<table>
<thead><td>Count</td><td>Profile</td></thead>
";

const FOOT: &str = "</ul>
<p><code>lines=1</code> adds inlined functions and lines; reading them takes about four times the size of the
debug information in memory. Where the executable is at hand, <code>go tool pprof -symbolize=local:force</code> reads them
on your side. Heap sampling: <a href='heap/sampling'>heap/sampling</a>.</p>
<p><code>go tool pprof -top http://HOST/debug/pprof/heap</code></p>
</body>
</html>";

/// The page. Blocks for about a millisecond, for the counts.
pub(super) fn page(runtime: Option<&Handle>) -> String {
    let mut rows: Vec<(&str, &str, i64)> =
        Kind::ALL.map(|kind| (kind.name(), kind.description(), kind.count(runtime))).to_vec();
    rows.extend(OTHERS.map(|(name, description)| (name, description, 0)));
    rows.sort_unstable();
    let mut page = HEAD.to_owned();
    for (name, _, count) in &rows {
        // Writing to a String does not fail, here and below.
        let _ =
            writeln!(page, "<tr><td>{count}</td><td><a href='{name}?debug=1'>{name}</a></td></tr>");
    }
    page.push_str("</table>\n<a href=\"tasks?debug=2\">full task list</a>\n<br>\nProfile descriptions:\n<ul>\n");
    for (name, description, _) in &rows {
        let _ = writeln!(page, "<li><div class=profile-name>{name}: </div> {description}</li>");
    }
    page.push_str(FOOT);
    page
}
