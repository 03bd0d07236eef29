//! Progress on stderr: one line a stage, a bar where the amount of work is known. Nothing where stderr is not a terminal.

use crate::driver::Progress;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;
use std::time::Duration;

/// Bars of the current stage.
pub struct Bars {
    bar: Option<ProgressBar>,
    visible: bool,
}

impl Bars {
    /// Bars on stderr, if that is a terminal.
    pub fn new() -> Bars {
        Bars { bar: None, visible: std::io::stderr().is_terminal() }
    }

    /// Ends the current stage's bar.
    pub fn finish(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

/// A template that is known to be valid; the default style stands in if it is not.
fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

impl Progress for Bars {
    fn begin(&mut self, name: &'static str) {
        self.finish();
        let target = if self.visible { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(None, target).with_message(name);
        bar.set_style(style("{spinner} {msg} {elapsed}"));
        bar.enable_steady_tick(Duration::from_millis(80));
        self.bar = Some(bar);
    }

    fn advance(&mut self, done: u64, total: u64) {
        if let Some(bar) = &self.bar {
            if bar.length() != Some(total) {
                bar.set_length(total);
                bar.set_style(style("{msg:24} {bar:30} {pos}/{len} {elapsed}"));
            }
            bar.set_position(done);
        }
    }
}

impl Drop for Bars {
    fn drop(&mut self) {
        self.finish();
    }
}
