//! Running things side by side. A panic in a thread goes on in the one that waits for it.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::thread::{self, ScopedJoinHandle};

use anyhow::Result;

/// Waits for a thread and returns its value.
pub fn join<T>(thread: ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Runs `work` on every item, each in a thread of its own, and returns the values in order.
pub fn each<T: Sync, R: Send>(items: &[T], work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> = items.iter().map(|item| scope.spawn(move || work(item))).collect();
        threads.into_iter().map(join).collect()
    })
}

/// Runs `work` on all items, in so many threads, until one fails.
///
/// # Errors
/// With that of one that failed.
pub fn try_each<T: Sync>(threads: usize, items: &[T], work: impl Fn(&T) -> Result<()> + Sync) -> Result<()> {
    let next = AtomicUsize::new(0);
    let worker = || {
        while let Some(item) = items.get(next.fetch_add(1, Relaxed)) {
            if let Err(error) = work(item) {
                // Nobody begins with another one.
                next.store(items.len(), Relaxed);
                return Err(error);
            }
        }
        Ok(())
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..threads.min(items.len())).map(|_| scope.spawn(worker)).collect();
        workers.into_iter().map(join).fold(Ok(()), Result::and)
    })
}

/// Returns how many threads may compress or decompress side by side: each holds some MiB.
pub fn workers() -> usize {
    thread::available_parallelism().map_or(2, |cores| cores.get()).min(8)
}

#[cfg(test)]
mod tests {
    use anyhow::ensure;

    use super::*;

    #[test]
    fn nothing_is_begun_after_one_has_failed() {
        let done = AtomicUsize::new(0);
        let until = |limit: usize| {
            try_each(1, &[1, 2, 3, 4], |number| {
                done.fetch_add(*number, Relaxed);
                ensure!(*number < limit, "{number} fails");
                Ok(())
            })
        };
        until(5).unwrap();
        assert_eq!(done.load(Relaxed), 10);
        assert_eq!(until(2).unwrap_err().to_string(), "2 fails");
        assert_eq!(done.load(Relaxed), 13);
    }
}
