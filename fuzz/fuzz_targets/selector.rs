#![no_main]

use headroom::sample::{Labels, Selector};
use libfuzzer_sys::fuzz_target;

// Space around a selector changes nothing, a fault lies inside the text, and what matches could have matched.
fuzz_target!(|text: &str| match Selector::parse(text) {
    Ok(selector) => {
        assert_eq!(Selector::parse(&format!(" {text}\t")).as_ref(), Ok(&selector));
        let known: Labels = [("a", "b"), ("n", "7"), ("x.y/z", "")].into_iter().collect();
        let matches = selector.matches(&known);
        assert_eq!(selector.may_match(&known, &[]), matches);
        assert!(!matches || selector.may_match(&known, &["a", "n"]));
        if let (true, Some(only)) = (matches, selector.only_value("a")) {
            assert_eq!(only, "b");
        }
    }
    Err(error) => assert!(error.position <= text.chars().count(), "{error}"),
});
