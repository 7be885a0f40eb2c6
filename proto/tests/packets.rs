//! Descriptors come with the packet that they were sent with.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::{AsFd, OwnedFd};

use cofferdam_proto::packet::{MAX_FDS, PacketError, recv, recv_all, send, send_all};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

fn pair() -> (OwnedFd, OwnedFd) {
    socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap()
}

fn file(text: &str) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file.rewind().unwrap();
    file
}

fn text(fd: OwnedFd) -> String {
    let mut text = String::new();
    File::from(fd).read_to_string(&mut text).unwrap();
    text
}

#[test]
fn descriptors_come_in_order() {
    let (one, other) = pair();
    let files = ["memory", "state"].map(file);
    send_all(&one, &"both", &[files[0].as_fd(), files[1].as_fd()]).unwrap();
    send(&one, &"one", Some(file("only").as_fd())).unwrap();
    send(&one, &"none", None).unwrap();
    let (message, fds) = recv_all::<String>(&other).unwrap().unwrap();
    assert_eq!(message, "both");
    assert_eq!(fds.into_iter().map(text).collect::<Vec<_>>(), ["memory", "state"]);
    let (message, fd) = recv::<String>(&other).unwrap().unwrap();
    assert_eq!((message.as_str(), text(fd.unwrap()).as_str()), ("one", "only"));
    let (message, fds) = recv_all::<String>(&other).unwrap().unwrap();
    assert!(message == "none" && fds.is_empty());
    drop(one);
    assert!(recv_all::<String>(&other).unwrap().is_none());
}

#[test]
fn more_descriptors_than_a_packet_has_are_not_sent() {
    let (one, _other) = pair();
    let file = file("");
    let fds = [file.as_fd(); MAX_FDS + 1];
    assert!(matches!(send_all(&one, &"too many", &fds), Err(PacketError::TooManyFds(3))));
}
