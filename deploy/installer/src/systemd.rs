//! systemd of the host, over the system bus. Root may ask it from a container that has no other
//! right.

use std::time::{Duration, Instant};

use zbus::Connection;
use zbus::zvariant::{DynamicDeserialize, DynamicType, OwnedObjectPath, OwnedValue, Value};

use crate::error::{Doing, Result, refuse};

const NAME: &str = "org.freedesktop.systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";
/// How long a unit may take to stop.
const STOP_LIMIT: Duration = Duration::from_secs(120);

/// A connection to it.
pub(crate) struct Systemd {
    connection: Connection,
}

impl Systemd {
    /// Connects to the bus of the host.
    ///
    /// # Errors
    /// When the bus cannot be reached; in a container, `/run/dbus` of the host has to be mounted.
    pub(crate) async fn connect() -> Result<Self> {
        let connection = Connection::system().await.doing(|| {
            "connect to the system bus of the host (is /run/dbus mounted, and does AppArmor allow it?)".into()
        })?;
        Ok(Self { connection })
    }

    /// systemd's version, which also proves that it answers.
    pub(crate) async fn version(&self) -> Result<String> {
        self.property("/org/freedesktop/systemd1", MANAGER, "Version")
            .await
            .doing(|| "ask systemd for its version".into())
    }

    /// Has it read unit files again.
    pub(crate) async fn reload(&self) -> Result<()> {
        self.call::<_, ()>("Reload", &()).await.doing(|| "have systemd read its unit files".into())
    }

    /// Enables units, or disables them.
    pub(crate) async fn enable(&self, units: &[&str], enabled: bool) -> Result<()> {
        type Changes = Vec<(String, String, String)>;
        let step = || format!("have systemd {} {}", if enabled { "enable" } else { "disable" }, units.join(", "));
        if enabled {
            let _: (bool, Changes) = self.call("EnableUnitFiles", &(units, false, true)).await.doing(step)?;
            return Ok(());
        }
        match self.call::<_, Changes>("DisableUnitFiles", &(units, false)).await {
            Err(zbus::Error::MethodError(name, ..)) if name.ends_with(".NoSuchUnit") => Ok(()),
            other => other.map(drop).doing(step),
        }
    }

    /// `StartUnit` or `RestartUnit`, without waiting for it.
    pub(crate) async fn begin(&self, method: &'static str, unit: &str) -> Result<()> {
        let job: zbus::Result<OwnedObjectPath> = self.call(method, &(unit, "replace")).await;
        job.map(drop).doing(|| format!("have systemd do {method} of {unit}"))
    }

    /// Stops a unit, and waits for that.
    pub(crate) async fn stop(&self, unit: &str) -> Result<()> {
        let job: zbus::Result<OwnedObjectPath> = self.call("StopUnit", &(unit, "replace")).await;
        match job {
            Err(zbus::Error::MethodError(name, ..)) if name.ends_with(".NoSuchUnit") => return Ok(()),
            other => other.map(drop).doing(|| format!("have systemd stop {unit}"))?,
        }
        let deadline = Instant::now() + STOP_LIMIT;
        while self.is_active(unit).await? {
            if Instant::now() > deadline {
                return refuse(format!("{unit} did not stop within {} s", STOP_LIMIT.as_secs()));
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        Ok(())
    }

    /// Whether a unit runs, or is about to start or to stop.
    pub(crate) async fn is_active(&self, unit: &str) -> Result<bool> {
        let state = self.of_unit(unit, "Unit", "ActiveState").await;
        let state: String = state.doing(|| format!("ask systemd how {unit} is"))?;
        Ok(!matches!(state.as_str(), "inactive" | "failed"))
    }

    /// How often systemd has started a service again by itself; 0 when it does not say.
    pub(crate) async fn restarts(&self, unit: &str) -> u32 {
        self.of_unit(unit, "Service", "NRestarts").await.unwrap_or(0)
    }

    /// The main process of a service; 0 when it has none.
    pub(crate) async fn main_pid(&self, unit: &str) -> Result<u32> {
        self.of_unit(unit, "Service", "MainPID").await.doing(|| format!("ask systemd for the process of {unit}"))
    }

    /// The `EnvironmentFile=` lines of a service.
    pub(crate) async fn environment_files(&self, unit: &str) -> Result<Vec<String>> {
        let step = || format!("ask systemd for the environment files of {unit}");
        let files: Vec<(String, bool)> = self.of_unit(unit, "Service", "EnvironmentFiles").await.doing(step)?;
        Ok(files.into_iter().map(|(path, _)| path).collect())
    }

    /// Runs a program on the host as a transient service, which outlives the caller. When it
    /// crashes, systemd starts it again.
    ///
    /// # Errors
    /// When such a unit is there already, or systemd refuses.
    pub(crate) async fn run(&self, unit: &str, description: &str, argv: &[String]) -> Result<()> {
        let step = || format!("have systemd run {}", argv.join(" "));
        let program = argv.first().map_or("", String::as_str);
        let properties: Vec<(&str, Value<'_>)> = vec![
            ("Description", Value::from(description)),
            ("Type", Value::from("exec")),
            ("ExecStart", Value::from(vec![(program, argv.to_vec(), false)])),
            // A failure that it has handled ends with status 0; after a crash it undoes first what
            // it had begun.
            ("Restart", Value::from("on-failure")),
            ("RestartUSec", Value::from(5_000_000_u64)),
            ("CollectMode", Value::from("inactive-or-failed")),
        ];
        let more: Vec<(&str, Vec<(&str, Value<'_>)>)> = Vec::new();
        let job: zbus::Result<OwnedObjectPath> =
            self.call("StartTransientUnit", &(unit, "fail", properties, more)).await;
        job.map(drop).doing(step)
    }

    async fn call<B, R>(&self, method: &'static str, body: &B) -> zbus::Result<R>
    where
        B: serde::Serialize + DynamicType,
        R: for<'d> DynamicDeserialize<'d>,
    {
        let path = "/org/freedesktop/systemd1";
        let reply = self.connection.call_method(Some(NAME), path, Some(MANAGER), method, body).await?;
        reply.body().deserialize()
    }

    async fn of_unit<T: TryFrom<OwnedValue, Error: Into<zbus::Error>>>(
        &self,
        unit: &str,
        kind: &str,
        name: &str,
    ) -> zbus::Result<T> {
        let path: OwnedObjectPath = self.call("LoadUnit", &(unit,)).await?;
        self.property(path.as_str(), &format!("{NAME}.{kind}"), name).await
    }

    async fn property<T: TryFrom<OwnedValue, Error: Into<zbus::Error>>>(
        &self,
        path: &str,
        interface: &str,
        name: &str,
    ) -> zbus::Result<T> {
        let properties = Some("org.freedesktop.DBus.Properties");
        let reply = self.connection.call_method(Some(NAME), path, properties, "Get", &(interface, name)).await?;
        let value: OwnedValue = reply.body().deserialize()?;
        T::try_from(value).map_err(Into::into)
    }
}
