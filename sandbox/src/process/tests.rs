use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use super::*;
use crate::cgroup::PodCgroup;
use crate::spec::Config;
use crate::testing::{new_id, on_a_node};

fn script(folder: &Path, text: &str) -> std::path::PathBuf {
    let path = folder.join("program");
    fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

fn start(config: &Config, folder: &Path, text: &str, apart: bool) -> (Started, PodCgroup) {
    let cgroup = PodCgroup::new(config, "/cofferdam-test", &new_id()).unwrap();
    let procs = cgroup.create("leaf", true).unwrap();
    let settings = config_fd(&"settings").unwrap();
    let number = settings.as_raw_fd().to_string();
    let program = Program {
        path: &script(folder, text),
        copy: None,
        args: &[&number],
        inherit: vec![settings.as_fd()],
        cgroup: &procs.procs,
        netns: None,
        stderr: &folder.join("stderr"),
        oom_score_adj: 7,
        apart,
    };
    (program.start().unwrap(), cgroup)
}

#[test]
fn a_program_gets_what_it_needs_and_its_end_is_seen() {
    on_a_node(|node| async move {
        let folder = node.folder.path().to_owned();
        let text = "{ cat /proc/self/fd/$1; echo; readlink /proc/$$/fd/* | tr '\\n' ' '; cat /proc/$$/oom_score_adj; \
                    cut -d: -f3 /proc/$$/cgroup | tail -1; } >&2\nread forever <&1 || true; exec sleep 1000";
        let (started, cgroup) = start(&node.config, &folder, text, false);
        assert!(find(started.record).is_some());
        let later = ProcessRecord { start_time: started.record.start_time + 1, ..started.record };
        assert!(find(later).is_none(), "another process with the same id was taken for it");
        let words = loop {
            let words = last_words(&folder.join("stderr"));
            if words.contains("/leaf") {
                break words;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        let lines: Vec<&str> = words.lines().collect();
        assert_eq!(lines[0], "\"settings\"");
        // Of all that this process has open (at least the runtime's poller), nothing else came along.
        let leaked = ["eventpoll", "eventfd", "pidfd", "socket"].iter().find(|kind| lines[1].contains(**kind));
        assert_eq!(leaked, None, "{words}");
        assert!(lines[1].ends_with(" 7") && lines[2].ends_with(&format!("{}/leaf", cgroup.name())), "{words}");

        let score = || fs::read_to_string(format!("/proc/{}/oom_score_adj", started.record.pid)).unwrap();
        rate(started.record, 12).unwrap();
        assert_eq!(score().trim(), "12");
        assert!(rate(later, 13).is_err(), "another process with the same id was rated");
        assert_eq!(score().trim(), "12");

        let watch = tokio::spawn(wait(started.pidfd));
        let killed = {
            let cgroup = cgroup.clone();
            tokio::task::spawn_blocking(move || cgroup.destroy())
        };
        assert_eq!(watch.await.unwrap(), Some(libc::SIGKILL));
        killed.await.unwrap().unwrap();
        assert!(find(started.record).is_none());
        let stat = Path::new("/proc").join(started.record.pid.to_string());
        assert!(!stat.exists(), "a zombie is left");
        cgroup.destroy().unwrap();
        let _ = fs::remove_dir(node.config.cgroup_root.join("cofferdam-test"));
    });
}

#[test]
fn a_program_apart_can_name_no_other_process() {
    on_a_node(|node| async move {
        let folder = node.folder.path().to_owned();
        // What it writes as its standard output goes nowhere, whose file it cannot change. SIGTERM to itself does nothing to process 1.
        let text = format!(
            "echo lost; {{ echo I am $$; kill -0 {} || echo nobody; chmod 666 /proc/self/fd/0 || echo unchanged; }} >&2\n\
             kill -TERM $$; echo still here >&2; exec sleep 1000",
            std::process::id()
        );
        let (started, cgroup) = start(&node.config, &folder, &text, true);
        let words = loop {
            let words = last_words(&folder.join("stderr"));
            if words.contains("still here") {
                break words;
            }
            assert!(find(started.record).is_some(), "it has ended: {words}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        assert!(words.starts_with("I am 1\n"), "{words}");
        assert!(words.contains("\nnobody\n") && words.contains("\nunchanged\n"), "{words}");
        assert_ne!(started.record.pid, 1);
        let watch = tokio::spawn(wait(started.pidfd));
        tokio::task::spawn_blocking(move || cgroup.destroy()).await.unwrap().unwrap();
        assert_eq!(watch.await.unwrap(), Some(libc::SIGKILL));
        let _ = fs::remove_dir(node.config.cgroup_root.join("cofferdam-test"));
    });
}

#[test]
fn only_the_last_words_are_kept() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("stderr");
    assert_eq!(last_words(&path), "");
    fs::write(&path, "x".repeat(1 << 20) + " the end\n").unwrap();
    let words = last_words(&path);
    assert!(words.ends_with(" the end") && words.len() <= 2048);
}

#[tokio::test]
async fn standard_error_is_kept_short() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("stderr");
    let mut writer = File::options().create(true).append(true).open(&path).unwrap();
    let keeping = tokio::spawn({
        let path = path.clone();
        async move { keep_short(&path, &Watches::default()).await }
    });
    writer.write_all(b"short").unwrap();
    let big = vec![b'x'; 300 << 10];
    for _ in 0..2 {
        let deadline = std::time::Instant::now() + Duration::from_secs(60);
        // Again and again, since the first may come before the watch.
        while path.metadata().unwrap().len() < MAX_STDERR {
            writer.write_all(&big).unwrap();
        }
        while path.metadata().unwrap().len() > MAX_STDERR {
            assert!(std::time::Instant::now() < deadline, "it is not cut");
            writer.write_all(b"y").unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    keeping.abort();
}
