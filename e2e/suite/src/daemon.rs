//! The daemon as systemd runs it: killed, restarted, asked.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::crictl::{Crictl, run, wait_for};
use crate::failure::{Doing, Outcome, ensure};
use crate::templates;

const UNIT: &str = "cofferdam.service";
const DROP_IN: &str = "/etc/cofferdam/conf.d/60-test.toml";

/// Runs systemctl and takes its trimmed output.
pub(crate) fn systemctl(args: &[&str]) -> Outcome<String> {
    let mut command = Command::new("systemctl");
    command.args(args);
    let output = run(command, &format!("systemctl {}", args.join(" ")))?;
    ensure!(output.code == 0, "systemctl {} failed: {}", args.join(" "), output.stderr.trim());
    Ok(output.stdout.trim().to_owned())
}

/// The daemon's process id.
pub(crate) fn pid() -> Outcome<i32> {
    let text = systemctl(&["show", "-p", "MainPID", "--value", UNIT])?;
    text.parse().map_err(|_| format!("systemd names no process of {UNIT}: {text:?}").into())
}

/// Kills the daemon with SIGKILL and waits until systemd has started it again and it answers.
pub(crate) fn kill_and_restart() -> Outcome {
    let old = pid()?;
    systemctl(&["kill", "--kill-whom=main", "--signal=SIGKILL", UNIT])?;
    let old_gone = || Ok(!Path::new(&format!("/proc/{old}")).exists());
    wait_for("the killed daemon to be gone", old_gone)?;
    systemctl(&["reset-failed", UNIT])?;
    systemctl(&["start", UNIT])?;
    wait_ready(&Crictl::default())
}

/// Kills the daemon with SIGKILL and keeps systemd from starting it until [`start`].
pub(crate) fn kill() -> Outcome {
    // `stop` would be a polite end; the mask keeps Restart= from undoing the kill.
    systemctl(&["mask", "--runtime", UNIT])?;
    systemctl(&["kill", "--kill-whom=main", "--signal=SIGKILL", UNIT])?;
    let crictl = Crictl::default();
    wait_for("the daemon to be dead", || Ok(crictl.attempt(&["version"])?.code != 0))
}

/// Starts the daemon that [`kill`] killed.
pub(crate) fn start() -> Outcome {
    systemctl(&["unmask", "--runtime", UNIT])?;
    systemctl(&["reset-failed", UNIT])?;
    systemctl(&["start", UNIT])?;
    wait_ready(&Crictl::default())
}

/// Starts the daemon anew, with the configuration that is there now.
pub(crate) fn restart() -> Outcome {
    systemctl(&["restart", UNIT])?;
    wait_ready(&Crictl::default())
}

/// Runs `test` on a daemon whose configuration has `settings` besides, and gives it its own back.
pub(crate) fn with_settings(settings: &str, test: impl FnOnce() -> Outcome) -> Outcome {
    fs::write(DROP_IN, settings).doing(&format!("write {DROP_IN}"))?;
    let outcome = restart().and_then(|()| test());
    fs::remove_file(DROP_IN).doing(&format!("remove {DROP_IN}"))?;
    restart()?;
    outcome
}

/// Waits until a daemon answers, and has made the templates that it makes at its start.
pub(crate) fn wait_ready(crictl: &Crictl) -> Outcome {
    wait_for("the daemon to answer", || Ok(crictl.attempt(&["version"])?.code == 0))?;
    templates::settle();
    Ok(())
}
