// The arithmetic of SiLU after GroupNorm for one group of one image: f32, contiguous, channel after channel.
//
// build.rs compiles this file once per instruction set, with other names; it includes nothing, so that no function of a
// header is compiled for a processor that the program may not run on. Sums go over LANES partial sums, which the
// compiler keeps in vector registers whatever their width.

#define LANES 32
#define JOIN(a, b) a##_##b
#define NAMED(a, b) JOIN(a, b)

// e^x for x in the range of finite results, to one unit in the last place (Cephes' polynomial). Code without branches, so
// that the compiler vectorizes loops around it.
static inline float exponential(float x) {
  x = x < -87.0f ? -87.0f : x;
  x = x > 88.0f ? 88.0f : x;
  // Adding 1.5 * 2^23 rounds to an integer, which is then in the low bits.
  const float magic = 12582912.0f;
  float shifted = x * 1.44269504f + magic;
  int bits;
  __builtin_memcpy(&bits, &shifted, 4);
  float whole = shifted - magic;
  float r = x - whole * 0.693359375f;
  r = r + whole * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  int power = (bits - 0x4B400000 + 127) << 23;
  float scale;
  __builtin_memcpy(&scale, &power, 4);
  return p * scale;
}

static inline float sigmoid(float x) { return 1.0f / (1.0f + exponential(-x)); }

// y = silu(weight * (x - mean) / std + bias); writes mean and 1 / std to `stats`.
void NAMED(group_norm_silu_forward, VARIANT)(const float* x, const float* weight, const float* bias, float* y, float* stats,
                                             long channels, long pixels, float eps) {
  const long count = channels * pixels;
  float lanes[LANES] = {0};
  long i = 0;
  for (; i + LANES <= count; i += LANES)
    for (int j = 0; j < LANES; j++) lanes[j] += x[i + j];
  float sum = 0;
  for (; i < count; i++) sum += x[i];
  for (int j = 0; j < LANES; j++) sum += lanes[j];
  const float mean = sum / (float)count;

  for (int j = 0; j < LANES; j++) lanes[j] = 0;
  float squares = 0;
  for (i = 0; i + LANES <= count; i += LANES)
    for (int j = 0; j < LANES; j++) lanes[j] += (x[i + j] - mean) * (x[i + j] - mean);
  for (; i < count; i++) squares += (x[i] - mean) * (x[i] - mean);
  for (int j = 0; j < LANES; j++) squares += lanes[j];
  const float rstd = 1.0f / __builtin_sqrtf(squares / (float)count + eps);

  stats[0] = mean;
  stats[1] = rstd;
  for (long c = 0; c < channels; c++) {
    const float scale = rstd * weight[c], shift = bias[c] - mean * rstd * weight[c];
    const float* from = x + c * pixels;
    float* to = y + c * pixels;
    for (long p = 0; p < pixels; p++) {
      const float z = from[p] * scale + shift;
      to[p] = z * sigmoid(z);
    }
  }
}

// The gradient dx of x, from the gradient dy of y.
void NAMED(group_norm_silu_backward, VARIANT)(const float* dy, const float* x, const float* weight, const float* bias,
                                              const float* stats, float* dx, long channels, long pixels) {
  const float mean = stats[0], rstd = stats[1];
  const float inverse = 1.0f / (float)(channels * pixels);
  float sum = 0, sum_x = 0;
  for (long c = 0; c < channels; c++) {
    const float w = weight[c], scale = rstd * w, shift = bias[c] - mean * scale;
    const float *in = x + c * pixels, *grad = dy + c * pixels;
    float* out = dx + c * pixels;
    float lanes[LANES] = {0}, lanes_x[LANES] = {0};
    long p = 0;
    for (; p + LANES <= pixels; p += LANES)
      for (int j = 0; j < LANES; j++) {
        const float z = in[p + j] * scale + shift, s = sigmoid(z);
        const float d = grad[p + j] * s * (1.0f + z * (1.0f - s)) * w;
        out[p + j] = d;
        lanes[j] += d;
        lanes_x[j] += d * (in[p + j] - mean);
      }
    for (; p < pixels; p++) {
      const float z = in[p] * scale + shift, s = sigmoid(z);
      const float d = grad[p] * s * (1.0f + z * (1.0f - s)) * w;
      out[p] = d;
      sum += d;
      sum_x += d * (in[p] - mean);
    }
    for (int j = 0; j < LANES; j++) {
      sum += lanes[j];
      sum_x += lanes_x[j];
    }
  }
  // The mean and the standard deviation depend on x too.
  const float by_mean = sum * inverse, by_std = sum_x * inverse * rstd * rstd;
  for (long i = 0; i < channels * pixels; i++) dx[i] = rstd * (dx[i] - by_mean - (x[i] - mean) * by_std);
}
