//! Tells the monitor by which sources it was built: a saved VM is restored by the same ones only.

use std::hash::{DefaultHasher, Hasher};
use std::path::Path;
use std::{fs, io};

/// What a saved state depends on: the monitor, its API, and the crates that they use.
const SOURCES: [&str; 3] = ["src", "../../proto/src", "../../Cargo.lock"];

fn main() -> io::Result<()> {
    let mut hasher = DefaultHasher::new();
    for source in SOURCES {
        println!("cargo::rerun-if-changed={source}");
        add(&mut hasher, Path::new(source))?;
    }
    println!("cargo::rustc-env=COFFERDAM_VMM_SOURCES={:016x}", hasher.finish());
    Ok(())
}

fn add(hasher: &mut DefaultHasher, path: &Path) -> io::Result<()> {
    if !path.is_dir() {
        hasher.write(path.to_string_lossy().as_bytes());
        hasher.write(&fs::read(path)?);
        return Ok(());
    }
    let mut entries = fs::read_dir(path)?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
    entries.sort();
    entries.iter().try_for_each(|entry| add(hasher, entry))
}
