//! Dates without a calendar crate: UTC, from seconds since 1970.

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// The default folder of a run: `RUNS/DATE-PLUGIN`, with date and time in UTC, so that names sort by age.
pub fn default_folder(runs: &Path, plugin: &str, now: SystemTime) -> PathBuf {
    let [year, month, day, hour, minute, second] = civil(unix_seconds(now));
    let plugin: String =
        plugin.chars().map(|c| if c.is_alphanumeric() || "-_.".contains(c) { c } else { '-' }).collect();
    runs.join(format!("{year:04}-{month:02}-{day:02}-{hour:02}{minute:02}{second:02}-{plugin}"))
}

/// Whole seconds since 1970, the format of a run's start time.
pub fn unix_seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// A readable time, such as `1 March 2024, 09:05 UTC`.
pub fn in_words(seconds: u64) -> String {
    const MONTHS: [&str; 12] = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ];
    let [year, month, day, hour, minute, _] = civil(seconds);
    format!("{day} {} {year}, {hour:02}:{minute:02} UTC", MONTHS[month as usize - 1])
}

/// Year, month, day, hour, minute and second in UTC. The days are counted from 1 March, year 0, so that the leap day
/// ends a year (H. Hinnant, "chrono-Compatible Low-Level Date Algorithms", `civil_from_days`).
fn civil(seconds: u64) -> [u64; 6] {
    let days = seconds / 86_400 + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let second = seconds % 86_400;
    [year, month, day, second / 3600, second / 60 % 60, second % 60]
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn dates_hold_at_their_edges() {
        for (seconds, expected) in [
            (0, [1970, 1, 1, 0, 0, 0]),
            (951_782_399, [2000, 2, 28, 23, 59, 59]),
            (951_782_400, [2000, 2, 29, 0, 0, 0]),
            (1_709_283_907, [2024, 3, 1, 9, 5, 7]),
            (4_107_542_400, [2100, 3, 1, 0, 0, 0]),
        ] {
            assert_eq!(civil(seconds), expected, "{seconds}");
        }
    }

    #[test]
    fn folders_sort_by_age_and_hold_no_separator() {
        let now = UNIX_EPOCH + Duration::from_secs(1_709_283_907);
        let folder = default_folder(Path::new("runs"), "registry/kmeans_image", now);
        assert_eq!(folder, Path::new("runs/2024-03-01-090507-registry-kmeans_image"));
        assert_eq!(in_words(1_709_283_907), "1 March 2024, 09:05 UTC");
    }
}
