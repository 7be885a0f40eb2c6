#![allow(unsafe_code)] // AsyncFd::register
//! Files that the daemon watches for changes, all with one inotify instance: root may have 128 of them on a node, and there are more
//! pods than that.

use std::collections::HashMap;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::fs::{Mode, OFlags};
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;

/// All watches of the daemon. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Watches {
    /// Made with the first watch.
    instance: Arc<Mutex<Option<Arc<Instance>>>>,
}

/// A file that is watched, until this is dropped.
#[derive(Debug)]
pub struct Watch {
    instance: Arc<Instance>,
    number: i32,
    told: Arc<Told>,
}

#[derive(Debug)]
struct Instance {
    inotify: OwnedFd,
    /// The kernel has one watch for a file, however many watch it here.
    told: Mutex<HashMap<i32, Vec<Weak<Told>>>>,
}

#[derive(Debug, Default)]
struct Told {
    changed: Notify,
    gone: AtomicBool,
}

impl Watches {
    /// Watches a file or directory for `events`. Blocks; must be called on a thread of the runtime.
    ///
    /// # Errors
    /// When the file is not there, or the kernel's limit of watches is reached.
    #[expect(clippy::disallowed_methods, reason = "on blocking threads only")]
    pub fn watch(&self, path: &Path, events: WatchFlags) -> io::Result<Watch> {
        let instance = self.instance()?;
        // Found before the lock is held: a path may take long, or for ever.
        let file = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let told = Arc::<Told>::default();
        let number = {
            // Held across both: an event is taken when it is known whom it is for.
            let mut all = instance.lock();
            let number = inotify::add_watch(&instance.inotify, path, events | WatchFlags::MASK_ADD)?;
            all.entry(number).or_default().push(Arc::downgrade(&told));
            number
        };
        Ok(Watch { instance, number, told })
    }

    fn instance(&self) -> io::Result<Arc<Instance>> {
        let mut instance = self.instance.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(instance) = &*instance {
            return Ok(instance.clone());
        }
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        let made = Arc::new(Instance { inotify, told: Mutex::default() });
        // SAFETY: an instance's descriptor is the same for all its life.
        let events = unsafe { AsyncFd::register(made.clone()) }.map_err(io::Error::from)?;
        tokio::spawn(read(events));
        Ok(instance.insert(made).clone())
    }
}

impl Watch {
    /// Waits for a change since the last call, or since the watch was made. `false`: the file is gone, and there will be no more.
    pub async fn changed(&self) -> bool {
        if !self.told.gone.load(Ordering::Acquire) {
            self.told.changed.notified().await;
        }
        !self.told.gone.load(Ordering::Acquire)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let mut all = self.instance.lock();
        let Some(told) = all.get_mut(&self.number) else { return };
        told.retain(|other| !std::ptr::eq(other.as_ptr(), Arc::as_ptr(&self.told)));
        if told.is_empty() {
            all.remove(&self.number);
            // The file may be gone, and the watch with it.
            let _ = inotify::remove_watch(&self.instance.inotify, self.number);
        }
    }
}

impl Instance {
    fn lock(&self) -> MutexGuard<'_, HashMap<i32, Vec<Weak<Told>>>> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, number: i32, events: ReadFlags) {
        let mut all = self.lock();
        if events.contains(ReadFlags::QUEUE_OVERFLOW) {
            all.values().flatten().filter_map(Weak::upgrade).for_each(|told| told.changed.notify_one());
        }
        let gone = events.contains(ReadFlags::IGNORED);
        for told in all.get(&number).into_iter().flatten().filter_map(Weak::upgrade) {
            told.gone.fetch_or(gone, Ordering::Release);
            told.changed.notify_one();
        }
        if gone {
            all.remove(&number);
        }
    }
}

impl AsRawFd for Instance {
    fn as_raw_fd(&self) -> RawFd {
        self.inotify.as_raw_fd()
    }
}

/// Takes events for as long as the runtime lives.
async fn read(instance: AsyncFd<Arc<Instance>>) {
    let mut buffer = [MaybeUninit::uninit(); 4096];
    loop {
        let mut ready = match instance.readable().await {
            Ok(ready) => ready,
            Err(error) => {
                tracing::error!(%error, "changes of files are not told any more");
                return;
            }
        };
        let mut reader = inotify::Reader::new(&instance.get_ref().inotify, &mut buffer);
        loop {
            match reader.next() {
                Ok(event) => instance.get_ref().take(event.wd(), event.events()),
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => break,
                Err(error) => {
                    tracing::error!(%error, "changes of files are not told any more");
                    return;
                }
            }
        }
        ready.clear_ready();
    }
}

#[cfg(test)]
mod tests;
