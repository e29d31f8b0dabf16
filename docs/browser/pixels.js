// Images to the model's input, as vlmo's processor prepares them: Pillow's bicubic filter, then mean and deviation.

const SUPPORT = 2; // pixels that the cubic kernel reaches each way
// Weights are integers in these units, as Pillow's are: a level that is off by one changes int8 vectors.
const UNIT = 2 ** 22;

function cubic(distance) {
  const x = Math.abs(distance);
  if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
  if (x < SUPPORT) return ((-0.5 * x + 2.5) * x - 4) * x + 2;
  return 0;
}

/** Return, for each target position, its first source position and the weights from there on. */
function kernels(from, to) {
  const scale = from / to;
  // A smaller image averages over more pixels: antialiasing.
  const stretch = Math.max(scale, 1);
  return Array.from({ length: to }, (_, target) => {
    const center = (target + 0.5) * scale;
    const first = Math.max(0, Math.trunc(center - SUPPORT * stretch + 0.5));
    const end = Math.min(from, Math.trunc(center + SUPPORT * stretch + 0.5));
    const weights = [];
    for (let source = first; source < end; source++) {
      weights.push(cubic((source - center + 0.5) / stretch));
    }
    const sum = weights.reduce((total, weight) => total + weight, 0);
    const rounded = (weight) => Math.trunc(weight * UNIT + 0.5 * Math.sign(weight));
    return { first, weights: weights.map((weight) => rounded(weight / sum)) };
  });
}

/** Resize the columns of rows of RGB levels; a level is rounded after each direction, as Pillow does. */
function resizeRows(levels, height, width, target) {
  // Its typed array keeps levels from 0 to 255.
  const resized = new Uint8ClampedArray(height * target * 3);
  kernels(width, target).forEach(({ first, weights }, column) => {
    for (let row = 0; row < height; row++) {
      for (let channel = 0; channel < 3; channel++) {
        let sum = 0;
        for (let tap = 0; tap < weights.length; tap++) {
          sum += weights[tap] * levels[(row * width + first + tap) * 3 + channel];
        }
        resized[(row * target + column) * 3 + channel] = Math.floor(sum / UNIT + 0.5);
      }
    }
  });
  return resized;
}

function transposed(levels, height, width) {
  const turned = new Uint8ClampedArray(levels.length);
  for (let row = 0; row < height; row++) {
    for (let column = 0; column < width; column++) {
      for (let channel = 0; channel < 3; channel++) {
        turned[(column * height + row) * 3 + channel] = levels[(row * width + column) * 3 + channel];
      }
    }
  }
  return turned;
}

/** Return the values (3, height, width) of an opaque image, given as a canvas's ImageData. */
export function pixelValues(image, { size, mean, std, rescale }) {
  const rgb = new Uint8ClampedArray(image.width * image.height * 3);
  for (let pixel = 0; pixel < image.width * image.height; pixel++) {
    for (let channel = 0; channel < 3; channel++) {
      rgb[pixel * 3 + channel] = image.data[pixel * 4 + channel];
    }
  }
  const [height, width] = size;
  const narrow = resizeRows(rgb, image.height, image.width, width);
  const resized = resizeRows(transposed(narrow, image.height, width), width, image.height, height);
  const values = new Float32Array(3 * height * width);
  for (let row = 0; row < height; row++) {
    for (let column = 0; column < width; column++) {
      for (let channel = 0; channel < 3; channel++) {
        const level = resized[(column * height + row) * 3 + channel];
        values[(channel * height + row) * width + column] = (level - mean[channel] / rescale) / (std[channel] / rescale);
      }
    }
  }
  return values;
}
