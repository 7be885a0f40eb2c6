//! Every test of the node: a table of names and functions.

mod any_order;
mod bad_input;
mod block_volumes;
mod bulk;
mod config_volumes;
mod containers;
mod devices;
mod disk;
mod events;
mod guests;
mod huge_pages;
mod images;
mod logs;
mod memory;
mod metrics;
mod network;
mod operators;
mod records;
mod reported;
mod resources;
mod saved_vms;
mod security;
mod shell;
mod soak;
mod starts;
mod statistics;
mod streaming;
mod templates;
mod tls;
mod tour;
mod trees;
mod volumes;

use std::thread;
use std::time::{Instant, SystemTime};

use crate::census::Census;
use crate::crictl::{self, Crictl, Pod};
use crate::failure::{Failure, Outcome};
use crate::{bad_registry, daemon, emulator};

/// One test.
pub(crate) type Test = (&'static str, fn() -> Outcome);

const HANDLERS: [&str; 2] = ["vm", "host"];

fn all() -> Vec<Test> {
    [
        tour::TESTS,
        containers::TESTS,
        images::TESTS,
        trees::TESTS,
        tls::TESTS,
        network::TESTS,
        operators::TESTS,
        disk::TESTS,
        logs::TESTS,
        records::TESTS,
        reported::TESTS,
        resources::TESTS,
        memory::TESTS,
        starts::TESTS,
        streaming::TESTS,
        statistics::TESTS,
        metrics::TESTS,
        events::TESTS,
        any_order::TESTS,
        soak::TESTS,
        bad_input::TESTS,
        bulk::TESTS,
        security::TESTS,
        volumes::TESTS,
        config_volumes::TESTS,
        block_volumes::TESTS,
        devices::TESTS,
        huge_pages::TESTS,
        guests::TESTS,
        saved_vms::TESTS,
        templates::TESTS,
    ]
    .concat()
}

/// A test that mostly waits, for limits of the daemon's that are minutes long.
const WAITS: &str = "start_without_an_answer";
/// Tests that run meanwhile: they need nothing of the node but pods of their own, and leave all
/// else alone.
const MEANWHILE: [&str; 5] = [
    "exit_codes_and_reasons",
    "containers_of_one_pod",
    "images",
    "reported_of_other_runtimes",
    "large_frames_reach_a_guest_whole",
];

/// Runs the tests whose names contain one of the words in `filter`, which have commas between them;
/// says how each ended, and counts.
pub(crate) fn run(filter: Option<&str>) -> Outcome {
    let is_chosen = |name: &str| filter.is_none_or(|words| words.split(',').any(|word| name.contains(word)));
    let chosen: Vec<Test> = all().into_iter().filter(|(name, _)| is_chosen(name)).collect();
    if chosen.is_empty() {
        return Err("no test has such a name".into());
    }
    daemon::wait_ready(&Crictl::default())?;
    bad_registry::start()?;
    Crictl::default().run(&["pull", crictl::BUSYBOX])?;
    let mut failed = Vec::new();
    let waits = chosen.iter().any(|(name, _)| *name == WAITS);
    let (meanwhile, alone): (Vec<Test>, Vec<Test>) =
        chosen.iter().partition(|(name, _)| waits && MEANWHILE.contains(name));
    for (name, test) in &alone {
        let beside = if *name == WAITS { &meanwhile[..] } else { &[] };
        let (started, since) = (Instant::now(), SystemTime::now());
        let mut outcome = once(*test, beside);
        if let (Err(failure), Some(slip)) = (&outcome, emulator::slip(since)) {
            println!("again, as the emulator slipped: {name}\n        {failure}\n        {slip}");
            sweep();
            outcome = once(*test, beside);
        }
        if !told(name, started, &outcome) {
            failed.push(*name);
            sweep();
        }
    }
    println!("\n{} passed, {} failed", chosen.len() - failed.len(), failed.len());
    if failed.is_empty() { Ok(()) } else { Err(Failure(format!("tests that failed: {}", failed.join(", ")))) }
}

/// Says how a test ended; whether it passed.
fn told(name: &str, started: Instant, outcome: &Outcome) -> bool {
    let seconds = started.elapsed().as_secs_f32();
    match outcome {
        Ok(()) => println!("ok      {seconds:6.1} s  {name}"),
        Err(failure) => println!("FAILED  {seconds:6.1} s  {name}\n        {failure}"),
    }
    outcome.is_ok()
}

/// Runs a test and, while it waits, the tests `beside` it; looks whether they left anything.
fn once(test: fn() -> Outcome, beside: &[Test]) -> Outcome {
    let before = Census::take()?;
    thread::scope(|scope| {
        let waiting = scope.spawn(test);
        let mut outcome = Ok(());
        for (name, test) in beside {
            let started = Instant::now();
            let ended = test();
            told(name, started, &ended);
            outcome = outcome.and(ended.map_err(|failure| Failure(format!("beside it, {name}: {failure}"))));
        }
        let waited = waiting.join().unwrap_or_else(|_| Err("the test panicked".into()));
        waited.and(outcome)
    })?;
    before.unchanged()
}

/// After a failure: removes every pod, so that the next test starts from an empty node.
fn sweep() {
    let crictl = Crictl::default();
    if let Ok(pods) = crictl.run(&["pods", "-q"]) {
        for pod in pods.lines() {
            let _ = crictl.attempt(&["rmp", "-f", pod]);
        }
    }
}

/// A check in a pod that others use, too: the pod's id and its configuration. What it makes there
/// is removed after it.
type Check = (&'static str, fn(&'static str, &str, &Pod) -> Outcome);

/// Runs checks one after the other in one pod, since a pod takes longer than most of them.
fn in_one_pod(handler: &'static str, pod: &Pod, checks: &[Check]) -> Outcome {
    let crictl = Crictl::default();
    let id = crictl.run_pod(handler, pod)?;
    for (name, check) in checks {
        let started = Instant::now();
        check(handler, &id, pod).map_err(|f| Failure(format!("{name}: {f}")))?;
        for container in crictl.run(&["ps", "-aq", "--pod", &id])?.lines() {
            crictl.run(&["rm", container])?;
        }
        println!("        {handler}, {:.1} s: {name}", started.elapsed().as_secs_f32());
    }
    crictl.remove_pod(&id)
}

/// Runs `test` once for each kind of pod.
fn with_both(test: impl Fn(&'static str) -> Outcome) -> Outcome {
    for handler in HANDLERS {
        test(handler).map_err(|f| Failure(format!("{handler}: {f}")))?;
    }
    Ok(())
}
