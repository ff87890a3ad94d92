// A style classifier plugin in C: classifies an image as dark, middling or light.
//
// wit-bindgen generates classifier_plugin.h from wit/plugin.wit; build.sh builds the component. There is no C library: the
// part of one that the bindings need is in libc.c.

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include "classifier_plugin.h"

enum { STYLES = 3 };
static const char *const NAMES[STYLES] = {"dark", "middling", "light"};
static const double CENTERS[STYLES] = {0.15, 0.5, 0.85};

// The interface version, which the host reads before it loads the component.
__asm__(".section \".custom_section.ambiguity:interface\",\"\",@\n.ascii \"0.2.0\"\n.text\n");

static void strings(classifier_plugin_list_string_t *list, const char *const *texts, size_t n) {
    list->len = n;
    list->ptr = malloc(n * sizeof *list->ptr);
    for (size_t i = 0; i < n; i++) classifier_plugin_string_dup(&list->ptr[i], texts[i]);
}

// exp(x) for -20 <= x <= 0, to seven digits: (1 + y + y²/2 + …)^1024 with y = x/1024.
static double exp_of(double x) {
    double y = x / 1024.0, e = 1.0 + y * (1.0 + y / 2.0 * (1.0 + y / 3.0 * (1.0 + y / 4.0)));
    for (int i = 0; i < 10; i++) e *= e;
    return e;
}

// log(x) for 1 <= x <= 3, to seven digits: 2 (z + z³/3 + z⁵/5 + …) with z = (x - 1)/(x + 1).
static double log_of(double x) {
    double z = (x - 1.0) / (x + 1.0), power = z, sum = 0.0;
    for (int i = 1; i < 24; i += 2, power *= z * z) sum += power / i;
    return 2.0 * sum;
}

// Replaces logits by the logarithms of the probabilities that they stand for. The largest logit is subtracted first, so that
// the sum of the exponentials is at least 1 and at most STYLES.
static void log_softmax(const double logits[STYLES], float *row) {
    double top = logits[0], sum = 0.0;
    for (int j = 1; j < STYLES; j++) top = logits[j] > top ? logits[j] : top;
    for (int j = 0; j < STYLES; j++) sum += exp_of(logits[j] - top);
    for (int j = 0; j < STYLES; j++) row[j] = (float)(logits[j] - top - log_of(sum));
}

static double mean_lightness(const uint8_t *rgb, size_t n_bytes) {
    uint64_t sum = 0;
    for (size_t i = 0; i < n_bytes; i++) sum += rgb[i];
    return n_bytes > 0 ? (double)sum / (255.0 * (double)n_bytes) : 0.0;
}

bool exports_ambiguity_plugin_description_describe(exports_ambiguity_plugin_description_description_t *ret,
                                                   classifier_plugin_string_t *err) {
    (void)err;
    const char *media[] = {"image"};
    classifier_plugin_string_dup(&ret->name, "lightness");
    classifier_plugin_string_dup(&ret->version, "0.1.0");
    strings(&ret->media, media, 1);
    ret->encoders.ptr = NULL;
    ret->encoders.len = 0;
    ret->options.ptr = NULL;
    ret->options.len = 0;
    ret->properties.ptr = NULL;
    ret->properties.len = 0;
    return true;
}

bool exports_ambiguity_plugin_classifier_styles(classifier_plugin_list_string_t *ret, classifier_plugin_string_t *err) {
    (void)err;
    strings(ret, NAMES, STYLES);
    return true;
}

static bool classify(exports_ambiguity_plugin_classifier_borrow_batch_t batch,
                     exports_ambiguity_plugin_classifier_matrix_t *ret, classifier_plugin_string_t *err) {
    uint32_t n = ambiguity_plugin_samples_method_batch_len(batch);
    float *rows = malloc(n * STYLES * sizeof *rows);
    for (uint32_t i = 0; i < n; i++) {
        ambiguity_plugin_samples_image_t image;
        if (!ambiguity_plugin_samples_method_batch_image(batch, i, &image, err)) return false;
        double lightness = mean_lightness(image.rgb.ptr, image.rgb.len), logits[STYLES];
        ambiguity_plugin_samples_image_free(&image);
        for (int j = 0; j < STYLES; j++) {
            double d = lightness - CENTERS[j];
            logits[j] = -d * d / 0.045;
        }
        log_softmax(logits, &rows[i * STYLES]);
    }
    ret->rows = n;
    ret->cols = STYLES;
    ret->data.ptr = rows;
    ret->data.len = n * STYLES;
    return true;
}

bool exports_ambiguity_plugin_classifier_classify(exports_ambiguity_plugin_classifier_borrow_batch_t batch,
                                                  exports_ambiguity_plugin_classifier_matrix_t *ret,
                                                  classifier_plugin_string_t *err) {
    bool good = classify(batch, ret, err);
    // A borrowed handle must be dropped before the call ends, also after an error.
    ambiguity_plugin_samples_batch_drop_borrow(batch);
    return good;
}
