//! The agent's API of today against that of version 1 (`agent-v1.proto`, as it was then): whatever
//! one side of either version writes, the other one reads. A field keeps its number, its type and
//! its name; one that goes leaves its number reserved; a call keeps its messages.

use std::collections::BTreeMap;

use prost_types::{DescriptorProto, EnumDescriptorProto, FileDescriptorProto};

fn compiled(folder: &str, name: &str) -> FileDescriptorProto {
    let folder = format!("{}/{folder}", env!("CARGO_MANIFEST_DIR"));
    let mut files = protox::compile([name], [folder]).unwrap().file;
    files.retain(|file| file.name() == name);
    files.pop().unwrap()
}

/// Messages and enums with those inside, by path.
#[derive(Default)]
struct Types<'a> {
    messages: BTreeMap<String, &'a DescriptorProto>,
    enums: BTreeMap<String, &'a EnumDescriptorProto>,
}

impl<'a> Types<'a> {
    fn of(file: &'a FileDescriptorProto) -> Self {
        let mut types = Self::default();
        types.add("", &file.message_type, &file.enum_type);
        types
    }

    fn add(&mut self, path: &str, messages: &'a [DescriptorProto], enums: &'a [EnumDescriptorProto]) {
        for kind in enums {
            self.enums.insert(format!("{path}.{}", kind.name()), kind);
        }
        for message in messages {
            let path = format!("{path}.{}", message.name());
            self.add(&path, &message.nested_type, &message.enum_type);
            self.messages.insert(path, message);
        }
    }
}

/// What `now` does with a message that `then` has.
fn broken_fields(path: &str, then: &DescriptorProto, now: &DescriptorProto, broken: &mut Vec<String>) {
    for old in &then.field {
        let reserved = now.reserved_range.iter().any(|range| (range.start()..range.end()).contains(&old.number()));
        match now.field.iter().find(|new| new.number() == old.number()) {
            Some(new) => {
                let key = |f: &prost_types::FieldDescriptorProto| {
                    (f.name().to_owned(), f.r#type(), f.label(), f.type_name().to_owned(), f.oneof_index.is_some())
                };
                if key(old) != key(new) {
                    broken.push(format!("{path}.{} is another field now", old.name()));
                }
            }
            None if reserved => {}
            None => {
                broken.push(format!("{path}.{} is gone and its number {} is not reserved", old.name(), old.number()))
            }
        }
    }
}

fn broken(then: &FileDescriptorProto, now: &FileDescriptorProto) -> Vec<String> {
    let (old, new) = (Types::of(then), Types::of(now));
    let mut broken = Vec::new();
    // Messages that fields of both have; one that only a removed field had may go.
    for (path, then) in &old.messages {
        if let Some(now) = new.messages.get(path) {
            broken_fields(path, then, now, &mut broken);
        }
    }
    for (path, then) in &old.enums {
        let now = new.enums.get(path).map(|kind| &kind.value[..]).unwrap_or_default();
        for value in &then.value {
            if !now.iter().any(|v| v.number() == value.number() && v.name() == value.name()) {
                broken.push(format!("{path}.{} is gone", value.name()));
            }
        }
    }
    for call in then.service.iter().flat_map(|service| &service.method) {
        let same = |m: &&prost_types::MethodDescriptorProto| {
            m.name() == call.name()
                && (m.input_type(), m.output_type()) == (call.input_type(), call.output_type())
                && (m.client_streaming(), m.server_streaming()) == (call.client_streaming(), call.server_streaming())
        };
        if !now.service.iter().flat_map(|service| &service.method).any(|m| same(&m)) {
            broken.push(format!("call {} is gone, or takes or answers something else", call.name()));
        }
    }
    broken
}

#[test]
fn both_versions_read_what_the_other_writes() {
    let (then, now) = (compiled("tests", "agent-v1.proto"), compiled("proto", "agent.proto"));
    assert!(then.service[0].method.len() > 15 && then.message_type.len() > 50);
    assert_eq!(broken(&then, &now), [""; 0]);
}

#[test]
fn what_breaks_is_seen() {
    let now = compiled("proto", "agent.proto");
    let mut then = now.clone();
    let hello = then.message_type.iter_mut().find(|m| m.name() == "HelloReply").unwrap();
    hello.field[0].set_type(prost_types::field_descriptor_proto::Type::String);
    hello.field[1].number = Some(99);
    then.service[0].method[0].name = Some("Greet".into());
    let broken = broken(&then, &now);
    assert_eq!(broken.len(), 3, "{broken:?}");
}
