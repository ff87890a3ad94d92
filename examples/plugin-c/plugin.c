// A style classifier plugin in C: classifies an image as dark, middling or light.
//
// wit-bindgen generates plugin.h from wit/plugin.wit; build.sh builds the component. There is no C library: the part of
// one that the bindings need is in libc.c.

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include "plugin.h"

enum { STYLES = 3 };
static const char *const NAMES[STYLES] = {"dark", "middling", "light"};
static const float CENTERS[STYLES] = {0.15f, 0.5f, 0.85f};

// The interface version, which the host reads before it loads the component.
__asm__(".section \".custom_section.ambiguity:interface\",\"\",@\n.ascii \"0.1.0\"\n.text\n");

static void strings(plugin_list_string_t *list, const char *const *texts, size_t n) {
    list->len = n;
    list->ptr = malloc(n * sizeof *list->ptr);
    for (size_t i = 0; i < n; i++) plugin_string_dup(&list->ptr[i], texts[i]);
}

// exp(x) for x <= 0, to about seven digits: (1 + y + y²/2 + …)^256 with y = x/256.
static float exp_of(float x) {
    float y = x / 256.0f, e = 1.0f + y * (1.0f + y / 2.0f * (1.0f + y / 3.0f * (1.0f + y / 4.0f)));
    for (int i = 0; i < 8; i++) e *= e;
    return x < -80.0f ? 0.0f : e;
}

static float mean_lightness(const uint8_t *rgb, size_t n_bytes) {
    uint64_t sum = 0;
    for (size_t i = 0; i < n_bytes; i++) sum += rgb[i];
    return n_bytes > 0 ? (float)sum / (255.0f * (float)n_bytes) : 0.0f;
}

bool exports_ambiguity_plugin_classifier_describe(exports_ambiguity_plugin_classifier_description_t *ret,
                                                  plugin_string_t *err) {
    (void)err;
    const char *media[] = {"image"};
    plugin_string_dup(&ret->name, "lightness");
    plugin_string_dup(&ret->version, "0.1.0");
    strings(&ret->styles, NAMES, STYLES);
    strings(&ret->media, media, 1);
    ret->encoders.ptr = NULL;
    ret->encoders.len = 0;
    return true;
}

static bool classify(exports_ambiguity_plugin_classifier_borrow_batch_t batch,
                     exports_ambiguity_plugin_classifier_matrix_t *ret, plugin_string_t *err) {
    uint32_t n = ambiguity_plugin_samples_method_batch_len(batch);
    float *rows = malloc(n * STYLES * sizeof *rows);
    for (uint32_t i = 0; i < n; i++) {
        ambiguity_plugin_samples_image_t image;
        if (!ambiguity_plugin_samples_method_batch_image(batch, i, &image, err)) return false;
        float lightness = mean_lightness(image.rgb.ptr, image.rgb.len), sum = 0.0f;
        ambiguity_plugin_samples_image_free(&image);
        for (int j = 0; j < STYLES; j++) {
            float d = lightness - CENTERS[j];
            sum += rows[i * STYLES + j] = exp_of(-d * d / 0.045f);
        }
        for (int j = 0; j < STYLES; j++) rows[i * STYLES + j] /= sum;
    }
    ret->rows = n;
    ret->cols = STYLES;
    ret->data.ptr = rows;
    ret->data.len = n * STYLES;
    return true;
}

bool exports_ambiguity_plugin_classifier_classify(exports_ambiguity_plugin_classifier_borrow_batch_t batch,
                                                  exports_ambiguity_plugin_classifier_matrix_t *ret,
                                                  plugin_string_t *err) {
    bool good = classify(batch, ret, err);
    // A borrowed handle must be dropped before the call ends, also after an error.
    ambiguity_plugin_samples_batch_drop_borrow(batch);
    return good;
}
