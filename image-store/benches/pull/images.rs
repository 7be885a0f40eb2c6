//! The images: files of many sizes, half of which compress well, and the same bytes in each run.

use cofferdam_image_store::Digest;

use crate::support::image::{Image, Layer, Packing, gzip_at};

/// What an image is to be.
pub struct Plan {
    pub name: &'static str,
    pub layers: u64,
    /// Of one layer: random bytes, and bytes of text, in thousands.
    pub random_kb: usize,
    pub text_kb: usize,
    /// Or so many small files.
    pub files: u64,
    pub packing: Packing,
}

const NOTHING: Plan = Plan { name: "", layers: 1, random_kb: 0, text_kb: 0, files: 0, packing: Packing::Gzip };

pub const PLANS: &[Plan] = &[
    Plan { name: "60mb_5_layers", layers: 5, random_kb: 8_000, text_kb: 10_000, ..NOTHING },
    Plan { name: "300mb_5_layers", layers: 5, random_kb: 40_000, text_kb: 50_000, ..NOTHING },
    Plan { name: "20_layers", layers: 20, random_kb: 2_000, text_kb: 2_500, ..NOTHING },
    Plan { name: "many_small_files", files: 100_000, ..NOTHING },
    Plan { name: "zstd", layers: 5, random_kb: 8_000, text_kb: 10_000, packing: Packing::Zstd, ..NOTHING },
];

/// For its memory only.
pub const LARGE: Plan = Plan { name: "1gb", layers: 4, random_kb: 220_000, text_kb: 75_000, ..NOTHING };

impl Plan {
    pub fn image(&self) -> Image {
        let layer = |number| {
            let mut content = Content { seed: Seed(number + 1), tar: tar::Builder::new(Vec::new()) };
            match self.files {
                0 => content.large(self),
                files => content.small(files),
            }
            let tar = content.tar.into_inner().unwrap();
            let bytes = match self.packing {
                Packing::Gzip => gzip_at(&tar, 6),
                _ => zstd::encode_all(&tar[..], 3).unwrap(),
            };
            Layer { bytes: bytes.into(), diff_id: Digest::of(&tar), packing: self.packing }
        };
        Image { label: self.name.into(), ..Image::new((0..self.layers).map(layer).collect()) }
    }
}

struct Content {
    seed: Seed,
    tar: tar::Builder<Vec<u8>>,
}

impl Content {
    fn large(&mut self, plan: &Plan) {
        let name = format!("of-{}", self.seed.0);
        self.dir(&name);
        for (kind, kilobytes) in [("random", plan.random_kb), ("text", plan.text_kb)] {
            let (mut left, mut number) = (kilobytes * 1000, 0);
            while left > 0 {
                let size = [2_000, 12_000, 40_000, 150_000, 1_000_000][self.seed.below(5)].min(left);
                let data = if kind == "random" { self.seed.bytes(size) } else { self.seed.text(size) };
                self.file(&format!("{name}/{kind}-{number:05}"), &data);
                left -= size;
                number += 1;
            }
        }
    }

    fn small(&mut self, files: u64) {
        for number in 0..files {
            let dir = format!("module-{:04}", number / 50);
            if number % 50 == 0 {
                self.dir(&dir);
            }
            let size = self.seed.below(3000);
            let data = self.seed.text(size);
            self.file(&format!("{dir}/file-{number:06}.js"), &data);
        }
    }

    fn dir(&mut self, name: &str) {
        self.entry(name, tar::EntryType::Directory, 0o755, &[]);
    }

    fn file(&mut self, name: &str, data: &[u8]) {
        self.entry(name, tar::EntryType::Regular, 0o644, data);
    }

    fn entry(&mut self, name: &str, kind: tar::EntryType, mode: u32, data: &[u8]) {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_700_000_000);
        header.set_size(data.len() as u64);
        self.tar.append_data(&mut header, name, data).unwrap();
    }
}

/// Numbers that are the same in each run (splitmix64).
struct Seed(u64);

impl Seed {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    fn bytes(&mut self, size: usize) -> Vec<u8> {
        std::iter::repeat_with(|| self.next().to_le_bytes()).flatten().take(size).collect()
    }

    /// Words of two to nine letters out of 4096, which compress to about a third.
    fn text(&mut self, size: usize) -> Vec<u8> {
        let mut text = Vec::with_capacity(size + 10);
        while text.len() < size {
            let mut word = Seed(self.next() % 4096);
            let length = 2 + word.below(8);
            text.extend((0..length).map(|_| b'a' + word.below(26) as u8));
            text.push(b' ');
        }
        text.truncate(size);
        text
    }
}
