//! Fuzz targets for every parser of bytes that Cofferdam does not trust.
//!
//! ```text
//!  targets/      what a target does with its bytes, and what must not happen then
//!  corpus/NAME/  inputs to begin with: seeds, and what fuzzing found worth keeping
//!  tests/smoke   the corpus and random changes of it, a second each: a part of `make test`
//!  libfuzzer     guided by coverage, for as long as one likes: `make fuzz`
//! ```
//!
//! A parser that is private is reached through the module `fuzzing` of its crate, which exists only
//! with the feature of that name.

pub mod corpus;
pub mod mutate;
pub mod scratch;
mod targets;
pub mod words;

pub use targets::{ALL, Target};

/// The target of this name.
#[must_use]
pub fn target(name: &str) -> Option<&'static Target> {
    ALL.iter().find(|target| target.name == name)
}
