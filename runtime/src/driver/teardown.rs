//! Failures of destructors. A destructor has nobody to return one to; whoever destroys on purpose listens, and returns the first.
//! With no listener on the thread a failure is a warning in the log.

use crate::error::{Error, Result};
use crate::log::{self, Level};
use std::cell::RefCell;
use std::fmt;

thread_local! {
    /// Failures since the innermost listener of this thread began; `None` without one.
    static FAILURES: RefCell<Option<Vec<String>>> = const { RefCell::new(None) };
}

/// Hands a destructor's failure to the listener, or to the log.
pub fn report(what: fmt::Arguments<'_>) {
    let heard = FAILURES.try_with(|failures| match &mut *failures.borrow_mut() {
        Some(list) => {
            list.push(what.to_string());
            true
        }
        None => false,
    });
    if !heard.unwrap_or(false) {
        log::write(Level::Warn, what);
    }
}

/// Puts the outer listener back, also when what is listened to panics.
struct Listener {
    outer: Option<Vec<String>>,
}

impl Listener {
    fn begin() -> Listener {
        Listener { outer: FAILURES.with(|failures| failures.replace(Some(Vec::new()))) }
    }

    /// What was reported so far.
    fn heard(&self) -> Vec<String> {
        FAILURES.with(|failures| failures.borrow_mut().replace(Vec::new())).unwrap_or_default()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let outer = self.outer.take();
        let _ = FAILURES.try_with(|failures| failures.replace(outer));
    }
}

/// What `work` gives, or the first failure of a destructor that it ran on this thread; others go to the log.
///
/// # Errors
/// Those of `work`, and [`Error::Driver`] with what failed.
pub fn listen<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    let listener = Listener::begin();
    let result = work();
    let mut failures = listener.heard().into_iter();
    drop(listener);
    let first = match &result {
        Ok(_) => failures.next(),
        Err(_) => None,
    };
    failures.for_each(|text| log::write(Level::Warn, format_args!("{text}")));
    match first {
        Some(text) => Err(Error::Driver(text)),
        None => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fails(&'static str);

    impl Drop for Fails {
        fn drop(&mut self) {
            report(format_args!("{}", self.0));
        }
    }

    #[test]
    fn the_first_failure_is_returned() {
        let error = listen(|| {
            drop(Fails("first"));
            drop(Fails("second"));
            Ok(())
        });
        assert!(error.unwrap_err().to_string().contains("first"));
        assert!(listen(|| Ok(7)).is_ok_and(|n| n == 7));
    }

    #[test]
    fn an_error_of_the_work_comes_before() {
        let error = listen(|| -> Result<()> {
            drop(Fails("destructor"));
            Err(Error::Driver("work".into()))
        });
        assert!(error.unwrap_err().to_string().contains("work"));
    }

    #[test]
    fn listeners_nest() {
        let outer = listen(|| {
            assert!(
                listen(|| {
                    drop(Fails("inner"));
                    Ok(())
                })
                .is_err()
            );
            drop(Fails("outer"));
            Ok(())
        });
        assert!(outer.unwrap_err().to_string().contains("outer"));
        let caught = std::panic::catch_unwind(|| listen(|| -> Result<()> { panic!("in the work") }));
        assert!(caught.is_err());
        assert!(listen(|| Ok(())).is_ok());
    }
}
