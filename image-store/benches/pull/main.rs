//! The store alone beside what a shell would do with the same layers:
//!
//! ```text
//! cargo bench -p cofferdam-image-store --bench pull -- [--dir DIR] [--rounds N] [--image NAME]
//! ```
//!
//! Each round pulls the image over loopback into a new store, in a process of its own, and then has
//! `sha256sum` read the layers' compressed bytes and `pigz -dc | tar x` (or `zstd -dc | tar x`)
//! unpack them, one layer after the other. The shell checks less: the store hashes the tar as well.
//! On a machine that does other work, compare the processor time and not the time on the clock.

mod images;
#[path = "../../tests/support/mod.rs"]
mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use cofferdam_image_store::{Config, RegistryConfig, Store};

use self::images::{LARGE, PLANS, Plan};
use self::support::Registry;
use self::support::image::Packing;

/// What may be resident while 1 GB is pulled.
const MOST_KIB: u64 = 100 << 10;

struct Options {
    dir: PathBuf,
    rounds: usize,
    only: Option<String>,
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let mut options = Options { dir: env!("CARGO_TARGET_TMPDIR").into(), rounds: 5, only: None };
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().unwrap_or_else(|| panic!("{argument} wants a value"));
        match argument.as_str() {
            "pull" => return pull(&value(), Path::new(&value())),
            "--dir" => options.dir = value().into(),
            "--rounds" => options.rounds = value().parse().expect("--rounds wants a number"),
            "--image" => options.only = Some(value()),
            "--bench" => {}
            other => panic!("{other:?} is not an argument: --dir DIR, --rounds N, --image NAME"),
        }
    }
    if support::root() {
        tokio::runtime::Runtime::new().unwrap().block_on(compare(&options));
    }
}

/// The process that is measured: pulls, and prints its largest resident memory in KiB.
fn pull(reference: &str, store: &Path) {
    let mut config = Config::new(store);
    let host = reference.split('/').next().unwrap().to_owned();
    config.registries.insert(host, RegistryConfig { plain_http: true, ..RegistryConfig::default() });
    // As many as the daemon has.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let store = Store::open(config).unwrap();
    runtime.block_on(store.pull(reference, None)).unwrap();
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    println!("{}", peak.trim().trim_end_matches(" kB"));
    // What is done behind a pull is not of the pull.
    std::process::exit(0);
}

async fn compare(options: &Options) {
    let is_wanted = |plan: &&Plan| options.only.as_deref().is_none_or(|only| only == plan.name);
    println!("milliseconds: p50, p99 | ratio: ours / theirs of the p50 | {} rounds", options.rounds);
    for plan in PLANS.iter().filter(is_wanted) {
        let bed = Bed::new(plan, &options.dir).await;
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        // The first round fills caches, and is not counted.
        for round in 0..=options.rounds {
            let (our, their) = (bed.ours(), bed.theirs(plan));
            if round > 0 {
                ours.push(our);
                theirs.push(their);
            }
        }
        let line = |what, time: fn(&Run) -> f64| {
            let of = |runs: &[Run]| {
                let mut times: Vec<f64> = runs.iter().map(time).collect();
                times.sort_by(f64::total_cmp);
                (times[times.len() / 2], times[(times.len() * 99).div_ceil(100) - 1])
            };
            let (our, their) = (of(&ours), of(&theirs));
            println!(
                "{:<17} {what}: ours {:6.0} {:6.0} | shell {:6.0} {:6.0} | {:.2}",
                plan.name,
                our.0,
                our.1,
                their.0,
                their.1,
                our.0 / their.0
            );
        };
        line("clock    ", |run| run.clock);
        line("processor", |run| run.processor);
        println!("{:<17} memory   : {} MiB", plan.name, ours.iter().map(|run| run.peak_kib).max().unwrap() >> 10);
    }
    if is_wanted(&&LARGE) {
        let peak = Bed::new(&LARGE, &options.dir).await.ours().peak_kib;
        let verdict = if peak <= MOST_KIB { "met" } else { "MISSED" };
        println!("{:<17} memory   : {} MiB, at most {}: {verdict}", LARGE.name, peak >> 10, MOST_KIB >> 10);
    }
}

/// Milliseconds, and the largest resident memory of the store's process.
struct Run {
    clock: f64,
    processor: f64,
    peak_kib: u64,
}

/// An image in a registry, and its layers as files.
struct Bed {
    _registry: Registry,
    reference: String,
    layers: Vec<PathBuf>,
    dir: tempfile::TempDir,
}

impl Bed {
    async fn new(plan: &Plan, dir: &Path) -> Self {
        let (image, registry) = (plan.image(), Registry::start().await);
        let dir = tempfile::tempdir_in(dir).unwrap();
        let keep = |(number, layer): (usize, &support::image::Layer)| {
            let path = dir.path().join(format!("layer-{number}"));
            fs::write(&path, &layer.bytes).unwrap();
            path
        };
        let layers = image.layers.iter().enumerate().map(keep).collect();
        let reference = registry.add(&format!("bench/{}:1", plan.name), &image);
        Self { _registry: registry, reference, layers, dir }
    }

    fn ours(&self) -> Run {
        let program = std::env::current_exe().unwrap();
        self.timed(&format!("'{}' pull '{}' store", program.display(), self.reference), "store")
    }

    fn theirs(&self, plan: &Plan) -> Run {
        let unpack = if plan.packing == Packing::Zstd { "zstd" } else { "pigz" };
        let files: Vec<_> = self.layers.iter().map(|layer| format!("'{}'", layer.display())).collect();
        let script = format!(
            "mkdir tree; for layer in {}; do sha256sum \"$layer\" >&2; {unpack} -dc \"$layer\" | tar x -C tree; done; echo 0",
            files.join(" ")
        );
        self.timed(&script, "tree")
    }

    /// Runs a script of bash and removes what it made.
    fn timed(&self, script: &str, made: &str) -> Run {
        rustix::fs::sync();
        let script = format!("set -o pipefail; TIMEFORMAT='%R %U %S'; time {{ {script}; }} 2>/dev/null");
        let output = Command::new("bash").args(["-ec", &script]).current_dir(&self.dir).output().unwrap();
        let (out, times) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{script}: {times} (pigz, zstd, tar and sha256sum are needed)");
        fs::remove_dir_all(self.dir.path().join(made)).unwrap();
        let seconds: Vec<f64> = times.split_whitespace().map(|time| time.parse().unwrap()).collect();
        let [clock, user, system] = seconds[..] else { panic!("bash says {times:?}") };
        Run { clock: clock * 1e3, processor: (user + system) * 1e3, peak_kib: out.trim().parse().unwrap() }
    }
}
