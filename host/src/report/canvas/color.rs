//! Colors: from OKLab, in which equal steps look equal, and for groups.

use super::Rgba;

/// Converts OKLab to sRGB (B. Ottosson, "A perceptual color space for image processing", 2020).
pub(crate) fn oklab([l, a, b]: [f32; 3]) -> Rgba {
    let cones = [
        l + 0.396_337_78 * a + 0.215_803_76 * b,
        l - 0.105_561_346 * a - 0.063_854_17 * b,
        l - 0.089_484_18 * a - 1.291_485_5 * b,
    ];
    let [l, m, s] = cones.map(|cone: f32| cone * cone * cone);
    let linear = [
        4.076_741_7 * l - 3.307_711_6 * m + 0.230_969_94 * s,
        -1.268_438 * l + 2.609_757_4 * m - 0.341_319_4 * s,
        -0.004_196_086_3 * l - 0.703_418_6 * m + 1.707_614_7 * s,
    ];
    let [red, green, blue] = linear.map(|light| {
        let light: f32 = light.clamp(0.0, 1.0);
        let encoded = if light <= 0.003_130_8 { 12.92 * light } else { 1.055 * light.powf(1.0 / 2.4) - 0.055 };
        (255.0 * encoded).round() as u8
    });
    [red, green, blue, 255]
}

/// Returns the color of group number `i` of `n`: hues around the circle, which alternate between light and dark where there
/// are too many for hues alone.
pub(crate) fn group_color(i: usize, n: usize) -> Rgba {
    let tones: &[(f32, f32)] = match n {
        0..=8 => &[(0.62, 0.16)],
        9..=16 => &[(0.56, 0.16), (0.74, 0.13)],
        _ => &[(0.47, 0.14), (0.63, 0.16), (0.78, 0.12)],
    };
    let (lightness, chroma) = tones[i % tones.len()];
    let hue = std::f32::consts::TAU * (0.07 + i as f32 / n.max(1) as f32);
    oklab([lightness, chroma * hue.cos(), chroma * hue.sin()])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn white_black_and_blue_are_themselves() {
        assert_eq!(oklab([1.0, 0.0, 0.0]), [255; 4]);
        assert_eq!(oklab([0.0; 3]), [0, 0, 0, 255]);
        // CSS Color 4: oklab(0.45201 -0.03245 -0.31217) is sRGB blue, to its digits.
        let [red, green, blue, _] = oklab([0.452_01, -0.032_45, -0.312_17]);
        assert!(red <= 2 && green <= 2 && blue >= 253, "{red} {green} {blue}");
    }

    #[test]
    fn groups_have_colors_of_their_own() {
        for n in [2, 8, 16, 27] {
            let colors: Vec<Rgba> = (0..n).map(|i| group_color(i, n)).collect();
            for (i, a) in colors.iter().enumerate() {
                let nearest =
                    colors[..i].iter().map(|b| (0..3).map(|c| i32::from(a[c].abs_diff(b[c]))).sum::<i32>()).min();
                assert!(nearest.is_none_or(|distance| distance > 30), "{n}: {i} {nearest:?}");
            }
        }
    }
}
