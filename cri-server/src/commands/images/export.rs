//! `cofferdam images export`: writes what the daemon packs into a file.

use std::fs::Permissions;
use std::io::{self, IsTerminal, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use cofferdam_proto::images::export_response::Part;
use cofferdam_proto::images::{ExportRequest, ExportedImage};
use tempfile::{Builder, NamedTempFile};

use super::super::Outcome;
use super::super::client::Daemon;
use super::super::table::plain;

pub(super) async fn run(mut daemon: Daemon, file: &Path, references: Vec<String>) -> Outcome {
    if file == Path::new("-") && io::stdout().is_terminal() {
        return Err("the archive would go to the terminal: name a file with --file, or redirect it".into());
    }
    let told = |error: &dyn std::fmt::Display| format!("cannot export {}: {error}", references.join(", "));
    let request = ExportRequest { references: references.clone() };
    let answer = daemon.admin.export_images(request).await.map_err(|status| told(&plain(status.message())))?;
    let (mut parts, mut target) = (answer.into_inner(), Target::new(file).map_err(|e| told(&e))?);
    while let Some(response) = parts.message().await.map_err(|status| told(&plain(status.message())))? {
        match response.part {
            Some(Part::Image(image)) => eprintln!("{}", line(&image)),
            Some(Part::Piece(piece)) => target.write(&piece).map_err(|e| told(&e))?,
            None => {}
        }
    }
    target.finish().map_err(|e| told(&e))?;
    Ok(ExitCode::SUCCESS)
}

/// What is said of an image. Standard output may be the archive.
fn line(image: &ExportedImage) -> String {
    let names: Vec<_> = image.names.iter().map(|name| plain(name)).collect();
    let names = if names.is_empty() { "(no name)".into() } else { names.join(" ") };
    format!("{names}: {} is {} in the archive", plain(&image.id), plain(&image.new_id))
}

/// Where the archive goes. A file gets its name when it is whole, and is deleted otherwise.
enum Target {
    Stdout,
    File { file: NamedTempFile, name: PathBuf },
}

impl Target {
    fn new(name: &Path) -> io::Result<Self> {
        if name == Path::new("-") {
            return Ok(Self::Stdout);
        }
        let folder = match name.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        // As for any new file, the umask takes away what others may not.
        let file = Builder::new().permissions(Permissions::from_mode(0o666)).tempfile_in(folder);
        let failed = |e: io::Error| io::Error::new(e.kind(), format!("making a file in {}: {e}", folder.display()));
        Ok(Self::File { file: file.map_err(failed)?, name: name.to_owned() })
    }

    fn write(&mut self, piece: &[u8]) -> io::Result<()> {
        match self {
            Self::Stdout => io::stdout().lock().write_all(piece),
            Self::File { file, name } => {
                let failed = |e: io::Error| io::Error::new(e.kind(), format!("writing {}: {e}", name.display()));
                file.as_file_mut().write_all(piece).map_err(failed)
            }
        }
    }

    fn finish(self) -> io::Result<()> {
        match self {
            Self::Stdout => io::stdout().lock().flush(),
            Self::File { file, name } => {
                let failed = |e: io::Error| io::Error::new(e.kind(), format!("renaming to {}: {e}", name.display()));
                file.persist(&name).map(drop).map_err(|e| failed(e.error))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_file_has_its_name_when_it_is_whole() {
        let dir = tempfile::tempdir().unwrap();
        let name = dir.path().join("a.tar");
        let mut target = Target::new(&name).unwrap();
        target.write(b"half").unwrap();
        drop(target);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "nothing of an export that broke off");
        let mut target = Target::new(&name).unwrap();
        target.write(b"whole").unwrap();
        target.finish().unwrap();
        assert_eq!(fs::read(&name).unwrap(), b"whole");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        assert!(Target::new(&dir.path().join("none/a.tar")).is_err());
    }

    #[test]
    fn lines_say_both_ids() {
        let image = ExportedImage { id: "sha256:1".into(), new_id: "sha256:2".into(), names: vec!["a:1".into()] };
        assert_eq!(line(&image), "a:1: sha256:1 is sha256:2 in the archive");
        let image = ExportedImage { names: vec![], ..image };
        assert_eq!(line(&image), "(no name): sha256:1 is sha256:2 in the archive");
    }
}
