//! Logs of the kubelet's format: split at 16 KiB, and rotated by renaming the file and asking for a new one.

use std::fs;
use std::time::Duration;

use cofferdam_proto::cri;

use super::{Test, with_both};
use crate::crictl::{self, Container, Crictl, Pod, wait_for};
use crate::failure::{Doing, Outcome, ensure};
use crate::rpc::Client;

pub(super) const TESTS: &[Test] = &[("rotated_logs_lose_and_double_nothing", || with_both(rotated))];

/// Longest text of one record.
const MAX_TEXT: usize = 16 << 10;
/// Text of a long line behind its number: two full records and some.
const LONG: usize = 40_000;
const ROTATIONS: u32 = 3;

/// Numbered lines without end, every 50th a long one; pauses let the node breathe.
fn script() -> String {
    format!(
        "long=$(printf %0{LONG}d 0); i=0
         while [ ! -e /stop ]; do
           if [ $((i % 50)) = 49 ]; then echo \"$i $long\"; sleep 0.1; else echo \"$i short\"; fi
           i=$((i + 1))
         done
         echo \"$i last\""
    )
}

fn rotated(handler: &'static str) -> Outcome {
    let crictl = Crictl::default();
    let pod = Pod::new("rotated");
    let id = crictl.run_pod(handler, &pod)?;
    let container = crictl.run_container(&id, &pod, &Container::shell("writer", &script()))?;
    let path = crictl.container_field(&container, "/status/logPath")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().doing("start tokio")?;
    let mut files = Vec::new();
    for number in 1..=ROTATIONS {
        let length = || fs::metadata(&path).map(|m| m.len()).unwrap_or(0);
        wait_for("the log to grow", || Ok(length() > 2 * LONG as u64))?;
        let old = format!("{path}.{number}");
        fs::rename(&path, &old).doing("rename the log")?;
        // Output goes on to the renamed file until the runtime is told.
        std::thread::sleep(Duration::from_millis(300));
        runtime.block_on(reopen(&container))?;
        ensure!(fs::exists(&path).doing("look at the log")?, "there is no new log when ReopenContainerLog returns");
        let closed = fs::metadata(&old).doing("look at the old log")?.len();
        files.push((old, closed));
    }
    crictl.run(&["exec", "--sync", &container, "touch", "/stop"])?;
    crictl.wait_state(&container, "CONTAINER_EXITED")?;
    let refused = runtime.block_on(reopen(&container));
    let mut text = String::new();
    for (old, closed) in &files {
        let part = fs::read_to_string(old).doing("read a rotated log")?;
        ensure!(part.len() as u64 == *closed, "{old} grew from {closed} to {} bytes after it was closed", part.len());
        text.push_str(&part);
    }
    text.push_str(&fs::read_to_string(&path).doing("read the log")?);
    crictl.remove_pod(&id)?;
    ensure!(refused.is_err(), "the log of a container that has ended was opened again");
    whole(&text)
}

async fn reopen(container: &str) -> Outcome {
    let mut client = Client::connect("logs", crictl::SOCKET).await?;
    let request = cri::ReopenContainerLogRequest { container_id: container.into() };
    let answer = client.runtime.reopen_container_log(request).await;
    answer.map(drop).map_err(|s| client.failed("ReopenContainerLog", &s))
}

/// Every line once, in order, split as the format wants it.
fn whole(text: &str) -> Outcome {
    let (mut line, mut next, mut last) = (String::new(), 0u64, false);
    for record in text.lines() {
        let mut fields = record.splitn(4, ' ');
        let (Some(_time), Some("stdout"), Some(tag), Some(part)) =
            (fields.next(), fields.next(), fields.next(), fields.next())
        else {
            return Err(format!("not a record of a log: {:.200}", record).into());
        };
        ensure!(part.len() <= MAX_TEXT, "a record has {} bytes of text", part.len());
        line.push_str(part);
        match tag {
            "P" => ensure!(part.len() == MAX_TEXT, "a part of line {next} has {} bytes", part.len()),
            "F" => {
                let (number, rest) = line.split_once(' ').unwrap_or((&line, ""));
                ensure!(number == next.to_string(), "line {number} comes where {next} should");
                let zeros = rest.len() == LONG && rest.bytes().all(|b| b == b'0');
                last = rest == "last";
                ensure!(last || if next % 50 == 49 { zeros } else { rest == "short" }, "line {next} is {rest:.200}");
                next += 1;
                line.clear();
            }
            other => return Err(format!("a record is tagged {other:?}").into()),
        }
    }
    ensure!(last && line.is_empty(), "the log ends before the last line, after {next} lines");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_lost_doubled_or_badly_split_is_seen() {
        let good = "t stdout F 0 short\nt stdout F 1 last\n";
        whole(good).unwrap();
        for (broken, word) in [
            ("t stdout F 1 last\n", "where 0 should"),
            ("t stdout F 0 short\nt stdout F 0 short\n", "where 1 should"),
            ("t stdout P 0 sh\nt stdout F ort\nt stdout F 1 last\n", "part of line 0"),
            ("t stdout F 0 short\n", "ends before the last line"),
            ("t stdout\n", "not a record"),
        ] {
            let failure = whole(broken).unwrap_err().to_string();
            assert!(failure.contains(word), "{failure}");
        }
    }
}
