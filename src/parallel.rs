//! Running things side by side. A panic in a thread goes on in the one that waits for it.

use std::thread::{self, ScopedJoinHandle};

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

/// Returns how many threads may compress or decompress side by side: each holds some MiB.
pub fn workers() -> usize {
    thread::available_parallelism().map_or(2, |cores| cores.get()).min(8)
}
