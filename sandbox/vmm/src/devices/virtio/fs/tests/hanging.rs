//! A file system that never answers.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use super::super::places::LIMIT;
use super::client::{Client, REQUESTS, ROOT, fields, name, op};

/// A mount whose server takes no request, until it is dropped.
struct Hanging {
    server: Option<File>,
    at: PathBuf,
}

impl Hanging {
    /// `None` where the test may not mount such.
    fn new(at: PathBuf) -> Option<Self> {
        let server = File::options().read(true).write(true).open("/dev/fuse").ok()?;
        std::fs::create_dir_all(&at).unwrap();
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", server.as_raw_fd());
        let options = std::ffi::CString::new(options).unwrap();
        mount("hanging", &at, "fuse", MountFlags::empty(), Some(options.as_c_str())).ok()?;
        Some(Self { server: Some(server), at })
    }

    /// From now on every request fails, also those that hang.
    fn give_up(&mut self) {
        self.server = None;
    }
}

impl Drop for Hanging {
    fn drop(&mut self) {
        self.give_up();
        let _ = unmount(&self.at, UnmountFlags::DETACH);
    }
}

fn threads(client: &Client) -> usize {
    client.fs.workers.as_ref().unwrap().count()
}

/// Waits until `reached`.
fn wait(what: &str, mut reached: impl FnMut() -> bool) {
    let start = Instant::now();
    while !reached() {
        assert!(start.elapsed() < Duration::from_secs(20), "{what} does not come");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn what_hangs_stops_only_who_asks_for_it() {
    let Some(mut client) = Client::new() else { return };
    let Some(mut hanging) = Hanging::new(client.path("share/hanging")) else {
        eprintln!("skipped: no FUSE here");
        return;
    };
    let file = client.find("volume/file");
    let before = client.guest.used_count(REQUESTS);
    // More than one place may hold, and more at once than there were threads.
    let asked = LIMIT as u64 + 5;
    for slot in 0..asked {
        client.post(slot, op::LOOKUP, ROOT, &name("hanging"));
    }
    wait("a thread for each that hangs", || threads(&client) > LIMIT);
    for round in 0..30 {
        assert!(client.call(op::GETATTR, file, &fields(&[0; 4])).is_ok(), "round {round}");
        client.find("layer0/dir");
    }
    assert_eq!(client.guest.used_count(REQUESTS), before.wrapping_add(30 * 3), "none of those that hang was answered");
    // Each of them may have had a thread until it was told to wait; those threads stay for a while, and serve others.
    let most = asked as usize + 2;
    assert!((LIMIT + 1..=most).contains(&threads(&client)), "{} threads", threads(&client));
    // When the file system answers at last, all are answered, those that had to wait too.
    hanging.give_up();
    let all = before.wrapping_add(30 * 3 + asked as u16);
    wait("an answer to all", || client.guest.used_count(REQUESTS) == all);
    assert!(client.call(op::GETATTR, file, &fields(&[0; 4])).is_ok());
}

#[test]
fn requests_of_many_file_systems_hang_and_the_rest_is_served() {
    let Some(mut client) = Client::new() else { return };
    let names: Vec<String> = (0..5).map(|number| format!("hanging{number}")).collect();
    let mut all = Vec::new();
    for name in &names {
        let Some(hanging) = Hanging::new(client.path("share").join(name)) else {
            eprintln!("skipped: no FUSE here");
            return;
        };
        all.push(hanging);
    }
    for (slot, export) in (0..).zip(names.iter().cycle().take(5 * (LIMIT + 2))) {
        client.post(slot, op::LOOKUP, ROOT, &name(export));
    }
    let file = client.find("volume/file");
    assert!(client.call(op::GETATTR, file, &fields(&[0; 4])).is_ok());
    all.iter_mut().for_each(Hanging::give_up);
    wait("an answer to all", || client.guest.used_count(REQUESTS) == 1 + 3 + 5 * (LIMIT as u16 + 2));
    // A reset waits for what is under way, and all of the threads end.
    client.restart();
    client.find("volume/file");
    // One for each of the two requests, at most, and one that listens.
    assert!(threads(&client) <= 3, "{} threads", threads(&client));
}

/// Requests of all kinds at once, from more files than there are threads: each gets its own answer.
#[test]
fn answers_do_not_mix() {
    let Some(mut client) = Client::new() else { return };
    for number in 0..40_u64 {
        std::fs::write(client.path("volume").join(number.to_string()), vec![b'x'; number as usize]).unwrap();
    }
    let nodes: Vec<u64> = (0..40).map(|number| client.find(&format!("volume/{number}"))).collect();
    for _ in 0..20 {
        let before = client.guest.used_count(REQUESTS);
        for (slot, node) in (0..).zip(&nodes) {
            client.post(slot, op::GETATTR, *node, &fields(&[0; 4]));
        }
        client.guest.wait_used(REQUESTS, before.wrapping_add(nodes.len() as u16));
        for slot in 0..nodes.len() as u64 {
            // Of the reply: 16 bytes of header, 16 of validity, the file's number, its size.
            assert_eq!(client.posted_number(slot, 16 + 16 + 8), slot, "the size of file {slot}");
        }
    }
}
