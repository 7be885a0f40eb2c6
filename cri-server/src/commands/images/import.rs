//! `cofferdam images import`: sends archives to the daemon, as tar streams that are not compressed.
//!
//! They are unpacked here and not in the daemon, whose memory all pods depend on.

#![expect(clippy::disallowed_methods, reason = "archives are read by a thread of its own")]

use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use cofferdam_proto::images::ImportRequest;
use cofferdam_proto::images::import_request::Part;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;

use super::super::client::Daemon;
use super::super::table::plain;
use super::super::{Outcome, print};

/// Bytes of one message.
const PIECE: usize = 256 << 10;
/// Messages that wait for the daemon.
const WAITING: usize = 4;

pub(super) async fn run(mut daemon: Daemon, name: Option<String>, files: Vec<PathBuf>) -> Outcome {
    if name.is_some() && files.len() > 1 {
        return Err("--name is for one archive: import them one after the other".into());
    }
    for file in files {
        let told = |error: &dyn std::fmt::Display| format!("cannot import {}: {error}", file.display());
        let (parts, failed) = read(file.clone(), name.clone())?;
        let answer = daemon.admin.import_images(ReceiverStream::new(parts)).await;
        // What could not be read here, the daemon only knows as an archive that broke off.
        if let Ok(error) = failed.await {
            return Err(told(&error).into());
        }
        let images = answer.map_err(|status| told(&plain(status.message())))?.into_inner().images;
        for image in images {
            let names: Vec<_> = image.names.iter().map(|name| plain(name)).collect();
            print(&format!("{}  {}\n", plain(&image.id), names.join(" ")))?;
        }
    }
    Ok(std::process::ExitCode::SUCCESS)
}

/// The messages that bring an archive to the daemon, and the error when it cannot be read.
type Reading = (mpsc::Receiver<ImportRequest>, oneshot::Receiver<io::Error>);

/// Begins to read an archive.
fn read(file: PathBuf, name: Option<String>) -> io::Result<Reading> {
    let (sender, parts) = mpsc::channel(WAITING);
    let (failed, error) = oneshot::channel();
    std::thread::Builder::new().name("archive".into()).spawn(move || {
        let mut pipe = Pipe(sender);
        let sent = name.map_or(Ok(()), |name| pipe.send(Part::Name(name)));
        match sent.and_then(|()| send(&file, &mut pipe)).and_then(|()| pipe.send(Part::Whole(true))) {
            // The daemon has said why it takes no more.
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => drop(failed.send(error)),
            _ => {}
        }
    })?;
    Ok((parts, error))
}

/// Writes an archive to `pipe` as a tar.
fn send(path: &Path, pipe: &mut Pipe) -> io::Result<()> {
    let mut pipe = BufWriter::with_capacity(PIECE, pipe);
    if path == Path::new("-") {
        unpacked(BufReader::with_capacity(PIECE, io::stdin().lock()), &mut pipe)?;
    } else if path.is_dir() {
        if !["index.json", "manifest.json"].iter().any(|name| path.join(name).is_file()) {
            let reason = "the directory has neither an index.json nor a manifest.json: it is no OCI layout";
            return Err(io::Error::other(reason));
        }
        let mut archive = tar::Builder::new(&mut pipe);
        // Bazel makes layouts of symbolic links, which are followed.
        archive.append_dir_all(".", path)?;
        archive.finish()?;
    } else {
        unpacked(BufReader::with_capacity(PIECE, File::open(path)?), &mut pipe)?;
    }
    pipe.flush()
}

/// Copies an archive, unpacked if it is packed.
fn unpacked(mut archive: impl BufRead, pipe: &mut impl Write) -> io::Result<()> {
    let magic = archive.fill_buf()?;
    let mut archive: Box<dyn Read + '_> = if magic.starts_with(&[0x1f, 0x8b]) {
        Box::new(flate2::bufread::MultiGzDecoder::new(archive))
    } else if magic.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        Box::new(zstd::stream::read::Decoder::with_buffer(archive)?)
    } else {
        Box::new(archive)
    };
    io::copy(&mut archive, pipe).map(drop)
}

/// The way to the daemon. It is broken when the daemon takes no more.
struct Pipe(mpsc::Sender<ImportRequest>);

impl Pipe {
    fn send(&self, part: Part) -> io::Result<()> {
        let sent = self.0.blocking_send(ImportRequest { part: Some(part) });
        sent.map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

impl Write for Pipe {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let piece = &bytes[..bytes.len().min(PIECE)];
        self.send(Part::Piece(piece.to_vec()))?;
        Ok(piece.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The name, the bytes, and whether they were said to be whole; or why not.
    fn sent(file: &Path, name: Option<&str>) -> Result<(Option<String>, Vec<u8>, bool), String> {
        let (mut parts, mut failed) = read(file.into(), name.map(str::to_owned)).unwrap();
        let (mut said, mut bytes, mut whole) = (None, Vec::new(), false);
        while let Some(request) = parts.blocking_recv() {
            match request.part {
                Some(Part::Name(name)) => said = Some(name),
                Some(Part::Piece(piece)) => bytes.extend(piece),
                Some(Part::Whole(_)) => whole = true,
                None => {}
            }
        }
        match failed.try_recv() {
            Ok(error) => Err(error.to_string()),
            Err(_) => Ok((said, bytes, whole)),
        }
    }

    #[test]
    fn archives_are_sent_as_plain_tars() {
        let dir = tempfile::tempdir().unwrap();
        let bytes: Vec<u8> = (0..600_000u32).map(|n| n as u8).collect();
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&bytes).unwrap();
        let packed = [bytes.clone(), gzip.finish().unwrap(), zstd::encode_all(&bytes[..], 1).unwrap()];
        for packed in &packed {
            let file = dir.path().join("archive");
            std::fs::write(&file, packed).unwrap();
            assert_eq!(sent(&file, Some("a:1")).unwrap(), (Some("a:1".into()), bytes.clone(), true));
        }
        let cut = dir.path().join("cut.tar.gz");
        std::fs::write(&cut, &packed[1][..packed[1].len() / 2]).unwrap();
        assert!(sent(&cut, None).is_err());
        assert!(sent(&dir.path().join("none"), None).is_err());
    }

    #[test]
    fn a_directory_is_sent_with_what_its_links_lead_to() {
        let dir = tempfile::tempdir().unwrap();
        let layout = dir.path().join("layout");
        std::fs::create_dir(&layout).unwrap();
        assert!(sent(&layout, None).unwrap_err().contains("no OCI layout"));
        std::fs::write(layout.join("index.json"), "{}").unwrap();
        std::fs::create_dir_all(layout.join("blobs/sha256")).unwrap();
        std::fs::write(dir.path().join("blob"), "bytes").unwrap();
        std::os::unix::fs::symlink("../../../blob", layout.join("blobs/sha256/abc")).unwrap();
        let (_, tar, whole) = sent(&layout, None).unwrap();
        assert!(whole);
        let mut found = std::collections::BTreeMap::new();
        for entry in tar::Archive::new(&tar[..]).entries().unwrap() {
            let mut entry = entry.unwrap();
            let name = entry.path().unwrap().display().to_string();
            let mut text = String::new();
            entry.read_to_string(&mut text).unwrap();
            found.insert(name.trim_start_matches("./").to_owned(), text);
        }
        assert_eq!((&*found["index.json"], &*found["blobs/sha256/abc"]), ("{}", "bytes"));
    }
}
