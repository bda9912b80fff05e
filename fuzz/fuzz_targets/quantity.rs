#![no_main]

use headroom::quantity::Quantity;
use libfuzzer_sys::fuzz_target;

// A quantity that is printed reads as the same again.
fuzz_target!(|text: &str| {
    if let Ok(quantity) = text.parse::<Quantity>() {
        assert_eq!(quantity.to_string().parse(), Ok(quantity), "{text:?}");
    }
});
