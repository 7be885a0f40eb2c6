//! What layers mean, as a file system in memory.

use std::collections::BTreeMap;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    Dir,
    File(Vec<u8>),
    Symlink(String),
    Fifo,
    Device(u32, u32),
}

/// What is at a path, and, for the model, which file it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    pub kind: Kind,
    pub mode: u32,
    pub owner: (u32, u32),
    /// `None`: nobody says.
    pub time: Option<(i64, i64)>,
    pub attributes: BTreeMap<String, Vec<u8>>,
}

/// One thing that a layer says.
#[derive(Clone)]
pub enum Say {
    Put(&'static str, Node),
    Link(&'static str, &'static str),
    Whiteout(&'static str),
    Opaque(&'static str),
}
use self::Say::{Link, Opaque, Put, Whiteout};

pub fn node(kind: Kind, mode: u32) -> Node {
    Node { kind, mode, owner: (0, 0), time: Some((1_600_000_000, 0)), attributes: BTreeMap::new() }
}

/// The file system that the layers mean: names, files, and the layer that put each name.
#[derive(Clone, Default)]
pub struct Model {
    pub names: BTreeMap<String, (usize, usize)>,
    pub files: Vec<Node>,
    pub layer: usize,
}

impl Model {
    pub fn node(&self, path: &str) -> &Node {
        &self.files[self.names[&self.real(path)].0]
    }

    /// The path with the links in its directories followed.
    fn real(&self, path: &str) -> String {
        let mut todo: Vec<String> = path.split('/').rev().map(str::to_owned).collect();
        let mut real: Vec<String> = Vec::new();
        while let Some(part) = todo.pop() {
            match part.as_str() {
                "" | "." => continue,
                ".." => drop(real.pop()),
                _ => real.push(part),
            }
            let to = match self.names.get(&real.join("/")).map(|(file, _)| &self.files[*file].kind) {
                Some(Kind::Symlink(to)) if !todo.is_empty() => to.clone(),
                _ => continue,
            };
            real.pop();
            if to.starts_with('/') {
                real.clear();
            }
            todo.extend(to.split('/').rev().map(str::to_owned));
        }
        real.join("/")
    }

    fn remove(&mut self, path: &str, itself: bool, only_lower: bool) {
        let (below, layer) = (format!("{path}/"), self.layer);
        self.names.retain(|name, (_, from)| {
            let hit = name.starts_with(&below) || itself && name == path;
            !hit || only_lower && *from == layer
        });
    }

    pub fn apply(&mut self, say: &Say) {
        let (Put(path, _) | Link(path, _) | Whiteout(path) | Opaque(path)) = say;
        let path = self.real(path);
        // Also those of a whiteout.
        let parts: Vec<_> = path.split('/').collect();
        for depth in 1..parts.len() {
            let parent = parts[..depth].join("/");
            if !self.names.contains_key(&parent) {
                self.files.push(Node { time: None, ..node(Kind::Dir, 0o755) });
                self.names.insert(parent, (self.files.len() - 1, self.layer));
            }
        }
        match say {
            Put(_, new) => {
                let is_dir = |file: usize| self.files[file].kind == Kind::Dir;
                let merge = new.kind == Kind::Dir && self.names.get(&path).is_some_and(|(file, _)| is_dir(*file));
                if !merge {
                    self.remove(&path, true, false);
                }
                self.files.push(new.clone());
                self.names.insert(path, (self.files.len() - 1, self.layer));
            }
            Link(_, target) => {
                let file = self.names[&self.real(target)].0;
                self.remove(&path, true, false);
                self.names.insert(path, (file, self.layer));
            }
            Whiteout(_) => self.remove(&path, true, true),
            Opaque(_) => self.remove(&path, false, true),
        }
    }
}
