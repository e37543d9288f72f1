//! Points at which a test may have the process killed, between two steps that must not be torn apart.
//!
//! With the feature `crash-points` and `WEIR_CRASH_AT=name:count`, the count-th pass of that point ends the process by
//! SIGKILL: no destructor runs, nothing is flushed. Without the feature a point is nothing.

/// Marks a point. Names are `noun.step`; docs/delivery.md lists them.
#[inline]
pub fn point(name: &str) {
    #[cfg(feature = "crash-points")]
    armed::pass(name);
    #[cfg(not(feature = "crash-points"))]
    let _ = name;
}

#[cfg(feature = "crash-points")]
mod armed {
    use std::sync::LazyLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    struct Armed {
        name: String,
        left: AtomicU64,
    }

    static ARMED: LazyLock<Option<Armed>> = LazyLock::new(|| {
        let setting = std::env::var("WEIR_CRASH_AT").ok()?;
        let (name, count) = setting.rsplit_once(':')?;
        Some(Armed { name: name.to_owned(), left: AtomicU64::new(count.parse().ok()?) })
    });

    pub(super) fn pass(name: &str) {
        let Some(armed) = ARMED.as_ref().filter(|armed| armed.name == name) else { return };
        if armed.left.fetch_sub(1, Ordering::SeqCst) == 1 {
            let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
            // SIGKILL to oneself is delivered before the call returns to user space; park in case it is not.
            loop {
                std::thread::park();
            }
        }
    }
}
