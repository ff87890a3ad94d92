//! Dates in UTC, from seconds since 1970.

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use time::OffsetDateTime;

/// The default folder of a run: `RUNS/DATE-PLUGIN`, with date and time in UTC, so that names sort by age.
pub fn default_folder(runs: &Path, plugin: &str, now: SystemTime) -> PathBuf {
    let time = utc(unix_seconds(now));
    let (date, (hour, minute, second)) = (time.date(), time.to_hms());
    let plugin: String =
        plugin.chars().map(|c| if c.is_alphanumeric() || "-_.".contains(c) { c } else { '-' }).collect();
    runs.join(format!("{date}-{hour:02}{minute:02}{second:02}-{plugin}"))
}

/// Whole seconds since 1970, the format of a run's start time.
pub fn unix_seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// A readable time, such as `1 March 2024, 09:05 UTC`.
pub fn in_words(seconds: u64) -> String {
    let time = utc(seconds);
    let (year, month, day) = time.to_calendar_date();
    format!("{day} {month} {year}, {:02}:{:02} UTC", time.hour(), time.minute())
}

/// Returns a time in UTC; a time after the year 9999 becomes the first of 1970.
fn utc(seconds: u64) -> OffsetDateTime {
    let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
    OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn folders_sort_by_age_and_hold_no_separator() {
        let now = UNIX_EPOCH + Duration::from_secs(1_709_283_907);
        let folder = default_folder(Path::new("runs"), "registry/kmeans_image", now);
        assert_eq!(folder, Path::new("runs/2024-03-01-090507-registry-kmeans_image"));
        assert_eq!(in_words(1_709_283_907), "1 March 2024, 09:05 UTC");
        assert_eq!(in_words(u64::MAX), "1 January 1970, 00:00 UTC");
    }
}
