//! Progress on stderr: bars on a terminal, a plain line every few seconds in a file or a pipe, nothing when quiet.

use std::io::{self, IsTerminal, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};
use tracing_subscriber::fmt::MakeWriter;

use crate::text::escaped;

/// Time between two lines where stderr is not a terminal.
const PLAIN_PERIOD: Duration = Duration::from_secs(10);

/// The target of what is printed on stderr apart from the log: only a log file records it.
pub const PRINTED: &str = "printed";

/// The output of progress; cheap to clone, and all clones share the terminal.
#[derive(Clone, Debug)]
pub struct Progress {
    mode: Mode,
}

#[derive(Clone, Debug)]
enum Mode {
    Quiet,
    Bars(MultiProgress),
    /// The time of the last line, shared by all bars, so that nested bars do not multiply the lines.
    Plain(Arc<Mutex<Instant>>),
}

impl Progress {
    /// Returns bars if stderr is a terminal, else lines; neither if `quiet`.
    pub fn new(quiet: bool) -> Self {
        let mode = match (quiet, io::stderr().is_terminal()) {
            (true, _) => Mode::Quiet,
            (false, true) => Mode::Bars(MultiProgress::with_draw_target(ProgressDrawTarget::stderr_with_hz(10))),
            (false, false) => Mode::Plain(Arc::new(Mutex::new(Instant::now()))),
        };
        Self { mode }
    }

    /// Starts a bar with a label, a total and a unit (plural: `images`, `steps`).
    pub fn bar(&self, label: &str, total: u64, unit: &str) -> Bar {
        let bar = match &self.mode {
            Mode::Bars(bars) => {
                let bar = bars.add(ProgressBar::new(total));
                bar.set_style(style(unit));
                bar.set_prefix(label.to_owned());
                bar.enable_steady_tick(Duration::from_millis(250));
                bar
            }
            Mode::Quiet | Mode::Plain(_) => ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::hidden()),
        };
        let plain = match &self.mode {
            Mode::Plain(last) => Some(Plain { label: label.to_owned(), unit: unit.to_owned(), last: Arc::clone(last) }),
            Mode::Quiet | Mode::Bars(_) => None,
        };
        Bar { bar, plain, started: Instant::now(), skipped: 0 }
    }

    /// Writes a line to stderr, above the bars; nothing when quiet. Whatever it quotes, it stays one line.
    pub fn println(&self, line: impl AsRef<str>) {
        tracing::info!(target: PRINTED, "{}", line.as_ref());
        let line = escaped(line.as_ref());
        match &self.mode {
            Mode::Quiet => {}
            // Work continues when the terminal is gone.
            Mode::Bars(bars) => drop(bars.println(line)),
            Mode::Plain(_) => drop(writeln!(io::stderr(), "{line}")),
        }
    }
}

/// Log lines are written through the progress too, so that they do not break the bars.
impl<'a> MakeWriter<'a> for Progress {
    type Writer = LogWriter<'a>;

    fn make_writer(&'a self) -> LogWriter<'a> {
        LogWriter(self)
    }
}

/// Writes log lines to stderr, above the bars.
#[derive(Debug)]
pub struct LogWriter<'a>(&'a Progress);

impl Write for LogWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &self.0.mode {
            Mode::Bars(bars) => bars.suspend(|| io::stderr().write(bytes)),
            Mode::Quiet | Mode::Plain(_) => io::stderr().write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

/// The progress of one piece of work; the bar is removed when it is finished or dropped.
#[derive(Debug)]
pub struct Bar {
    bar: ProgressBar,
    plain: Option<Plain>,
    started: Instant,
    skipped: u64,
}

#[derive(Debug)]
struct Plain {
    label: String,
    unit: String,
    last: Arc<Mutex<Instant>>,
}

impl Bar {
    /// Marks what an earlier process did: it counts as done, but not for the speed.
    pub fn skip(&mut self, done: u64) {
        self.skipped += done;
        self.bar.inc(done);
        if self.bar.position() == self.skipped {
            self.bar.reset_eta();
            self.started = Instant::now();
        }
    }

    /// Advances by `done`.
    pub fn inc(&self, done: u64) {
        self.bar.inc(done);
        let Some(plain) = &self.plain else { return };
        let mut last = plain.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.elapsed() >= PLAIN_PERIOD {
            *last = Instant::now();
            drop(writeln!(io::stderr(), "{}", plain.line(&self.bar, self.skipped, self.started.elapsed())));
        }
    }

    /// Adds to the total what has to be done again.
    pub fn extend(&self, more: u64) {
        self.bar.inc_length(more);
    }

    /// Sets the text behind the bar, such as the newest reward.
    pub fn message(&self, message: impl Into<String>) {
        self.bar.set_message(message.into());
    }

    /// Removes the bar.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.finish();
    }
}

impl Plain {
    /// Returns a line such as `sampling: 40/64 images, 12.3 images/s, 2 s left, reward −3.41`.
    fn line(&self, bar: &ProgressBar, skipped: u64, elapsed: Duration) -> String {
        let (done, total) = (bar.position(), bar.length().unwrap_or(0));
        let per_second = done.saturating_sub(skipped) as f64 / elapsed.as_secs_f64().max(1e-6);
        let mut line = format!("{}: {done}/{total} {}", self.label, self.unit);
        if per_second > 0.0 {
            let left = Duration::from_secs_f64(total.saturating_sub(done) as f64 / per_second);
            line += &format!(", {}, {} left", speed(per_second, &self.unit), duration_text(left));
        }
        if !bar.message().is_empty() {
            line += &format!(", {}", bar.message());
        }
        line
    }
}

fn style(unit: &str) -> ProgressStyle {
    let unit = unit.to_owned();
    let template = "{prefix:>12} {bar:28.cyan/black.bright} {pos}/{len} {speed:.dim} {left:.dim} {wide_msg}";
    ProgressStyle::with_template(template)
        .expect("the template is a constant and a test parses it")
        .progress_chars("━━─")
        .with_key("speed", move |state: &ProgressState, out: &mut dyn std::fmt::Write| {
            let per_second = state.per_sec();
            if per_second > 0.0 {
                write!(out, "{}", speed(per_second, &unit)).expect("writing to a string does not fail");
            }
        })
        .with_key("left", |state: &ProgressState, out: &mut dyn std::fmt::Write| {
            if state.pos() > 0 {
                write!(out, "{} left", duration_text(state.eta())).expect("writing to a string does not fail");
            }
        })
}

/// Formats a speed with three significant digits: `12.3 images/s`.
fn speed(per_second: f64, unit: &str) -> String {
    let decimals = (2 - per_second.max(1e-4).log10().floor() as i32).clamp(0, 6) as usize;
    format!("{per_second:.decimals$} {unit}/s")
}

/// Formats a duration: `42 s`, `3 min 20 s`, `2 h 5 min`.
fn duration_text(duration: Duration) -> String {
    let seconds = duration.as_secs_f64().round() as u64;
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        _ => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(label: &str) -> Plain {
        Plain { label: label.into(), unit: "images".into(), last: Arc::new(Mutex::new(Instant::now())) }
    }

    #[test]
    fn a_plain_line_has_speed_and_time_left_and_skipped_work_is_not_speed() {
        let bar = ProgressBar::hidden();
        bar.set_length(100);
        bar.set_position(60);
        let line = plain("sampling").line(&bar, 40, Duration::from_secs(10));
        assert_eq!(line, "sampling: 60/100 images, 2.00 images/s, 20 s left");
        bar.set_message("reward −3.41");
        assert!(plain("sampling").line(&bar, 60, Duration::from_secs(10)).ends_with("60/100 images, reward −3.41"));
    }

    #[test]
    fn speeds_and_times_are_short() {
        assert_eq!(speed(123.4, "steps"), "123 steps/s");
        assert_eq!(speed(0.0523, "images"), "0.0523 images/s");
        assert_eq!(duration_text(Duration::from_secs(200)), "3 min 20 s");
        assert_eq!(duration_text(Duration::from_secs(7500)), "2 h 5 min");
    }

    #[test]
    fn the_template_is_valid_and_bars_work_without_a_terminal() {
        drop(style("images"));
        let progress = Progress::new(true);
        let mut bar = progress.bar("sampling", 10, "images");
        bar.skip(4);
        bar.inc(1);
        bar.message("fine");
        assert_eq!(bar.bar.position(), 5);
        bar.finish();
        progress.println("not shown");
    }
}
