//! Every target over its corpus, and over random changes of it for about a second each. Failures
//! print the input; `FUZZ_MILLIS` sets the time, `FUZZ_SEED` repeats a run.

use std::time::{Duration, Instant};

use cofferdam_fuzz::{ALL, Target, corpus, mutate};

/// Bytes of all inputs in the repository.
const MOST: usize = 1 << 20;

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Says what the target was at, if it panics.
struct Report<'a>(&'a Target, &'a [u8], u64);

impl Drop for Report<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let Self(target, bytes, seed) = &*self;
            let path = std::env::temp_dir().join(format!("crash-{}", target.name));
            let kept = std::fs::write(&path, bytes).map(|()| path.display().to_string());
            eprintln!("{} failed with FUZZ_SEED={seed}; its input of {} bytes: {kept:?}", target.name, bytes.len());
        }
    }
}

fn run(target: &Target) {
    let seed = setting("FUZZ_SEED").unwrap_or_else(|| fastrand::u64(..));
    let inputs = corpus::read(target).unwrap_or_else(|error| panic!("no corpus of {}: {error}", target.name));
    assert!(!inputs.is_empty(), "the corpus of {} is empty", target.name);
    for input in &inputs {
        let _report = Report(target, input, seed);
        (target.run)(input);
    }
    let mut rng = fastrand::Rng::with_seed(seed);
    let end = Instant::now() + Duration::from_millis(setting("FUZZ_MILLIS").unwrap_or(1000));
    while Instant::now() < end {
        let input = mutate::changed(&mut rng, &inputs, target.most);
        let _report = Report(target, &input, seed);
        (target.run)(&input);
    }
}

macro_rules! smoke {
    ($($name:ident)*) => {
        $(#[test]
        fn $name() {
            run(cofferdam_fuzz::target(stringify!($name)).expect("a target"));
        })*

        #[test]
        fn every_target_is_here() {
            let here = [$(stringify!($name)),*];
            assert_eq!(ALL.iter().map(|target| target.name).collect::<Vec<_>>(), here);
        }
    };
}

smoke! {
    virtio_blk virtio_net virtio_vsock virtio_mem virtio_balloon virtio_rng virtio_fs fuse mmio saved_state
    log_frames launch_config packets
    layer compressed manifest image_config reference auth_challenge hosts_toml signature_policy image_archive
    spdy websocket cdi record agent_replies config_toml
    seccomp users
    cni mountinfo
}

#[test]
fn the_corpora_are_small() {
    let bytes: usize = ALL.iter().flat_map(|target| corpus::read(target).unwrap_or_default()).map(|i| i.len()).sum();
    assert!(bytes < MOST, "{bytes} bytes of inputs are in the repository");
}

/// Writes the seeds that are made by code; see fuzz/README.md.
#[test]
#[ignore = "changes the repository"]
fn write_seeds() {
    for target in ALL {
        let folder = corpus::folder(target);
        std::fs::create_dir_all(&folder).expect("a folder in the repository");
        for (number, seed) in (target.seeds)().into_iter().enumerate() {
            std::fs::write(folder.join(format!("seed-{number:02}")), seed).expect("a file in the repository");
        }
    }
}
