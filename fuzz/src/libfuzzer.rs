//! The coverage-guided fuzzer: libFuzzer over the target that `COFFERDAM_FUZZ_TARGET` names.
#![no_main]

use std::sync::OnceLock;

use cofferdam_fuzz::Target;
use libfuzzer_sys::{Corpus, fuzz_target};

static CHOSEN: OnceLock<&'static Target> = OnceLock::new();

fuzz_target!(|bytes: &[u8]| -> Corpus {
    let target = CHOSEN.get_or_init(|| {
        let name = std::env::var("COFFERDAM_FUZZ_TARGET").unwrap_or_default();
        cofferdam_fuzz::target(&name).unwrap_or_else(|| {
            let names: Vec<_> = cofferdam_fuzz::ALL.iter().map(|target| target.name).collect();
            eprintln!("COFFERDAM_FUZZ_TARGET={name:?} is not one of {}", names.join(" "));
            std::process::exit(2)
        })
    });
    (target.run)(bytes);
    Corpus::Keep
});
