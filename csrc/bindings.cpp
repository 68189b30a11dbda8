// The Python face of the C++ parts; the only file that knows pybind11.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <pybind11/stl/filesystem.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <memory>
#include <optional>
#include <utility>

#include "batchnorm_prelu.hpp"
#include "gather.hpp"
#include "recordio.hpp"
#include "sampler.hpp"
#include "warp.hpp"

namespace py = pybind11;
using namespace fastmfr;

namespace {

using Int64s = py::array_t<int64_t, py::array::c_style>;
using GilRelease = py::call_guard<py::gil_scoped_release>;

template <class T>
py::array_t<T> read_only(const T* data, uint64_t size, py::handle owner) {
    py::array_t<T> array(py::ssize_t(size), data, owner);
    py::detail::array_proxy(array.ptr())->flags &= ~py::detail::npy_api::NPY_ARRAY_WRITEABLE_;
    return array;
}

/// The text as a str. It may hold names of files, which may be any bytes: they become what os.fsdecode makes of them.
py::object text_of(const std::string& text) {
    return py::reinterpret_steal<py::object>(PyUnicode_DecodeFSDefaultAndSize(text.data(), py::ssize_t(text.size())));
}

void raise(PyObject* type, const std::exception& error) { PyErr_SetObject(type, text_of(error.what()).ptr()); }

/// The encoded image as an array that keeps the record's bytes.
py::array_t<uint8_t> image_array(Record& record) {
    const py::capsule owner(record.bytes.get(), std::free);
    (void)record.bytes.release();
    return read_only(record.image.data, record.image.size, owner);
}

py::array_t<uint8_t> jpeg(const RecordFile& file, uint64_t image) {
    Record record;
    {
        py::gil_scoped_release release;  // the disk may make us wait
        file.read(image, record);
    }
    return image_array(record);
}

py::list jpegs(const RecordFile& file, const Int64s& images) {
    const std::vector<int64_t> numbers(images.data(), images.data() + images.size());  // safe from other threads
    std::vector<Record> records(numbers.size());
    {
        py::gil_scoped_release release;  // all reads are with the disk before the first is waited for
        for (size_t i = 0; i < records.size(); ++i) file.begin(uint64_t(numbers[i]), records[i]);
        for (size_t i = 0; i < records.size(); ++i) file.read(uint64_t(numbers[i]), records[i]);
    }
    py::list arrays(records.size());
    for (size_t i = 0; i < records.size(); ++i) arrays[i] = image_array(records[i]);
    return arrays;
}

std::unique_ptr<Sampler> make_sampler(const std::vector<std::string>& names, const std::vector<Int64s>& offsets,
                                      uint32_t share, uint64_t seed, uint32_t rank, uint32_t world, bool augment,
                                      bool per_domain, std::vector<std::vector<uint32_t>> people,
                                      std::vector<uint32_t> turns) {
    if (names.size() != offsets.size()) throw std::invalid_argument("want one name for each array of offsets");
    std::vector<DomainImages> domains;  // copies: what the caller does to the arrays later changes no draw
    for (size_t i = 0; i < names.size(); ++i)
        domains.push_back({names[i], {offsets[i].data(), offsets[i].data() + offsets[i].size()}});
    py::gil_scoped_release release;
    return std::make_unique<Sampler>(std::move(domains), share, seed, rank, world, augment, per_domain,
                                     Draws{std::move(people), std::move(turns)});
}

/// One (4, share) array: domain, identity, gallery, probe.
Int64s draw(const Sampler& sampler, const Stream& stream, uint64_t step) {
    Int64s rows({py::ssize_t(4), py::ssize_t(stream.share)});
    int64_t* const data = rows.mutable_data();
    const uint32_t share = stream.share;
    py::gil_scoped_release release;
    sampler.draw(stream, step, {data, data + share, data + 2 * share, data + 3 * share});
    return rows;
}

template <class T>
using Maybe = std::optional<py::array_t<T, py::array::c_style>>;

/// The data of an optional argument that must hold `size` values.
template <class T>
const T* values(const Maybe<T>& array, int64_t size, const char* name) {
    if (array && array->size() != size)
        throw std::invalid_argument("want " + std::to_string(size) + " values in " + name + ", got " +
                                    std::to_string(array->size()));
    return array ? array->data() : nullptr;
}

void gather_images(const py::array_t<uint8_t, py::array::c_style>& images, const Maybe<int64_t>& index,
                   const Maybe<bool>& mirror, const Maybe<int32_t>& shift, const Maybe<int32_t>& block,
                   const Maybe<float>& gain, const Maybe<float>& offset, float mean, float scale,
                   py::array_t<float, py::array::c_style>& out) {
    if (images.ndim() != 4 || images.shape(3) != 3) throw std::invalid_argument("want images (N, H, W, 3)");
    const Pixels pixels{images.data(), images.shape(0), images.shape(1), images.shape(2)};
    const int64_t batch = index ? index->size() : pixels.images;
    if (out.size() != batch * 3 * pixels.height * pixels.width) throw std::invalid_argument("want out (B, 3, H, W)");
    const int64_t* const numbers = index ? index->data() : nullptr;
    const auto* const mirrored = reinterpret_cast<const uint8_t*>(values(mirror, batch, "mirror"));
    const Changes changes{mirrored, values(shift, 2 * batch, "shift"), values(block, batch, "block"),
                          values(gain, batch, "gain"), values(offset, batch, "offset")};
    float* const written = out.mutable_data();
    py::gil_scoped_release release;
    gather(pixels, numbers, batch, changes, mean, scale, written);
}

void warp_image(const py::array_t<uint8_t, py::array::c_style>& image, const py::array_t<double, py::array::c_style>& map,
                py::array_t<uint8_t, py::array::c_style>& out) {
    for (const auto& array : {image, static_cast<const py::array_t<uint8_t, py::array::c_style>&>(out)})
        if (array.ndim() != 3 || array.shape(2) != 3) throw std::invalid_argument("want image and out (H, W, 3)");
    if (map.size() != 6) throw std::invalid_argument("want the map as 2 x 3 numbers");
    const Picture picture{image.data(), image.shape(0), image.shape(1)};
    const int64_t height = out.shape(0), width = out.shape(1);
    const double* const numbers = map.data();
    if (!std::all_of(numbers, numbers + 6, [](double number) { return std::isfinite(number); }))
        throw std::invalid_argument("want a map of finite numbers");
    uint8_t* const written = out.mutable_data();
    py::gil_scoped_release release;
    warp(picture, numbers, height, width, written);
}

using Address = std::uintptr_t;  // of a tensor's first element, or 0 for no tensor

template <class T>
T* at(Address address) { return reinterpret_cast<T*>(address); }

Sizes sizes_of(const std::array<int64_t, 3>& sizes) {
    const auto [pixels, channels, threads] = sizes;
    if (pixels < 1 || channels < 1) throw std::invalid_argument("want at least one pixel and one channel");
    return {pixels, channels, int(threads)};
}

template <class T>
Layer<T> layer_of(const std::array<Address, 5>& layer, int64_t slopes) {
    const auto [mean, r, weight, bias, slope] = layer;
    return {at<T>(mean), at<T>(r), at<T>(weight), at<T>(bias), at<T>(slope), slopes};
}

template <class T>
Moving<T> moving_of(const std::array<Address, 3>& moving) {
    return {at<T>(moving[0]), at<T>(moving[1]), at<T>(moving[2])};
}

/// Calls `function` with a float or a double, whose type says what the tensors hold.
template <class Function>
void of_dtype(bool is_double, const Function& function) {
    if (is_double)
        function(double());
    else
        function(float());
}

using Three = std::array<int64_t, 3>;
using Five = std::array<Address, 5>;
using Moved = std::array<Address, 3>;

void batchnorm_statistics(bool is_double, const Three& sizes, Address running_mean, Address running_variance,
                          double momentum, double eps, Address x, Address mean, Address r) {
    of_dtype(is_double, [&](auto kind) {
        using T = decltype(kind);
        const Running<T> running{at<T>(running_mean), at<T>(running_variance), T(momentum)};
        batch_statistics(sizes_of(sizes), running, T(eps), at<T>(x), at<T>(mean), at<T>(r));
    });
}

void batchnorm_forward(bool is_double, const Three& sizes, const Five& layer, int64_t slopes, Address x, Address y) {
    of_dtype(is_double, [&](auto kind) {
        using T = decltype(kind);
        forward(sizes_of(sizes), layer_of<T>(layer, slopes), at<T>(x), at<T>(y));
    });
}

void batchnorm_backward(bool is_double, const Three& sizes, const Five& layer, int64_t slopes, bool batch, Address x,
                        Address dy, Address dx, Address sum) {
    of_dtype(is_double, [&](auto kind) {
        using T = decltype(kind);
        backward(sizes_of(sizes), layer_of<T>(layer, slopes), batch, at<T>(x), at<T>(dy), at<T>(dx), at<T>(sum));
    });
}

void batchnorm_tangent(bool is_double, const Three& sizes, const Five& layer, int64_t slopes, const Moved& moving,
                       bool batch, Address x, Address xd, Address yd, Address moved) {
    of_dtype(is_double, [&](auto kind) {
        using T = decltype(kind);
        tangent(sizes_of(sizes), layer_of<T>(layer, slopes), moving_of<T>(moving), batch, at<T>(x), at<T>(xd),
                at<T>(yd), at<T>(moved));
    });
}

void batchnorm_second_backward(bool is_double, const Three& sizes, const Five& layer, int64_t slopes,
                               const Moved& moving, bool batch, Address x, Address dy, Address xd, Address dyd,
                               Address sum, Address moved, Address dxd, Address sum_d) {
    of_dtype(is_double, [&](auto kind) {
        using T = decltype(kind);
        second_backward(sizes_of(sizes), layer_of<T>(layer, slopes), moving_of<T>(moving), batch, at<T>(x), at<T>(dy),
                        at<T>(xd), at<T>(dyd), at<T>(sum), at<T>(moved), at<T>(dxd), at<T>(sum_d));
    });
}

void add_batchnorm(py::module_& module) {
    module.def("batchnorm_statistics", &batchnorm_statistics, GilRelease(), py::arg("is_double"), py::arg("sizes"),
               py::arg("running_mean"), py::arg("running_variance"), py::arg("momentum"), py::arg("eps"), py::arg("x"),
               py::arg("mean"), py::arg("r"), R"(Write the mean of each channel of x, and r = 1 / sqrt(variance + eps).

fastmfr.kernels.batchnorm_prelu is the package to use; this function and the next four serve it on the CPU. A tensor
is given as the address of its first element, 0 for none, and is not checked. The GIL is released.

Args:
    is_double: Whether tensors hold float64; else float32.
    sizes: Pixels N, channels C, threads.
    running_mean: Moved towards the mean, (C,), or none.
    running_variance: Moved towards the unbiased variance, (C,), or none.
    momentum: Weight of this batch in the running statistics.
    eps: Added to the variance.
    x: (N, C).
    mean: (C,), overwritten.
    r: (C,), overwritten.)");

    module.def("batchnorm_forward", &batchnorm_forward, GilRelease(), py::arg("is_double"), py::arg("sizes"),
               py::arg("layer"), py::arg("slopes"), py::arg("x"), py::arg("y"), R"(Write y = PReLU(BatchNorm(x)).

Args:
    is_double: As batchnorm_statistics takes it.
    sizes: As batchnorm_statistics takes them.
    layer: Mean, r, weight, bias and slope; without a slope there is no PReLU.
    slopes: How many slopes there are: C, or one for all channels.
    x: (N, C).
    y: (N, C), overwritten.)");

    module.def("batchnorm_backward", &batchnorm_backward, GilRelease(), py::arg("is_double"), py::arg("sizes"),
               py::arg("layer"), py::arg("slopes"), py::arg("batch"), py::arg("x"), py::arg("dy"), py::arg("dx"),
               py::arg("sum"), R"(Write the gradients of x and of the layer.

Args:
    is_double: As batchnorm_statistics takes it.
    sizes: As batchnorm_statistics takes them.
    layer: As batchnorm_forward takes it.
    slopes: As batchnorm_forward takes them.
    batch: Whether mean and r are the batch's, and so depend on x.
    x: (N, C).
    dy: Gradient of y, (N, C).
    dx: (N, C), overwritten.
    sum: Gradients of bias, weight and slope per channel, (3, C), overwritten.)");

    module.def("batchnorm_tangent", &batchnorm_tangent, GilRelease(), py::arg("is_double"), py::arg("sizes"),
               py::arg("layer"), py::arg("slopes"), py::arg("moving"), py::arg("batch"), py::arg("x"), py::arg("xd"),
               py::arg("yd"), py::arg("moved"), R"(Write the tangent of y.

Args:
    is_double: As batchnorm_statistics takes it.
    sizes: As batchnorm_statistics takes them.
    layer: As batchnorm_forward takes it.
    slopes: As batchnorm_forward takes them.
    moving: Tangents of weight, bias and slope.
    batch: As batchnorm_backward takes it.
    x: (N, C).
    xd: Tangent of x, (N, C).
    yd: (N, C), overwritten.
    moved: Sums per channel, (2, C), overwritten; batchnorm_second_backward reads them.)");

    module.def("batchnorm_second_backward", &batchnorm_second_backward, GilRelease(), py::arg("is_double"),
               py::arg("sizes"), py::arg("layer"), py::arg("slopes"), py::arg("moving"), py::arg("batch"), py::arg("x"),
               py::arg("dy"), py::arg("xd"), py::arg("dyd"), py::arg("sum"), py::arg("moved"), py::arg("dxd"),
               py::arg("sum_d"), R"(Write the derivatives of all results of batchnorm_backward along the tangent.

Args:
    is_double: As batchnorm_statistics takes it.
    sizes: As batchnorm_statistics takes them.
    layer: As batchnorm_forward takes it.
    slopes: As batchnorm_forward takes them.
    moving: As batchnorm_tangent takes it.
    batch: As batchnorm_backward takes it.
    x: (N, C).
    dy: Gradient of y, (N, C).
    xd: Tangent of x, (N, C).
    dyd: Derivative of dy, (N, C).
    sum: What batchnorm_backward wrote.
    moved: What batchnorm_tangent wrote.
    dxd: Derivative of dx, (N, C), overwritten.
    sum_d: Derivatives of sum, (3, C), overwritten.)");
}

}  // namespace

PYBIND11_MODULE(_native, module) {
    module.doc() = "The compiled parts of fastmfr: RecordIO files, the grouped domain sampler, and on the CPU gathering,"
                   " warping, BatchNorm with PReLU.";

    add_batchnorm(module);

    module.def("gather_images", &gather_images, py::arg("images"), py::arg("index"), py::arg("mirror").none(true),
               py::arg("shift").none(true), py::arg("block").none(true), py::arg("gain").none(true),
               py::arg("offset").none(true), py::arg("mean"), py::arg("scale"), py::arg("out").noconvert(),
               R"(Write images, changed and normalised, channels first: (grey level - mean) * scale.

fastmfr.kernels.gather_images is the function to call; this one is what serves it on the CPU. The GIL is released.

Args:
    images: Decoded images, uint8 (N, H, W, 3).
    index: Images to take, int64 (B,), each in [0, N); None takes all.
    mirror: Images to mirror left to right, bool (B,); None, here and below, leaves the change out.
    shift: Whole pixels to shift by, down and right, int32 (B, 2); the border is repeated.
    block: Side in pixels of the square cells that are averaged, int32 (B,), at least 1.
    gain: Factor of the grey levels, float32 (B,).
    offset: Grey levels that are added after the gain, float32 (B,); the result is clamped to [0, 255].
    mean: Grey level that becomes 0.
    scale: Factor afterwards, per grey level.
    out: float32 (B, 3, H, W), C-contiguous; overwritten.

Raises:
    ValueError: A shape does not fit.
    IndexError: An index is not in [0, N).)");

    module.def("warp_image", &warp_image, py::arg("image"), py::arg("map"), py::arg("out").noconvert(),
               R"(Write an image under an affine map to `out`, by bilinear interpolation. The GIL is released.

Args:
    image: RGB, uint8 (H, W, 3).
    map: float64 (2, 3), finite. Column x and row y of `out` show column map[0] @ (x, y, 1) and row map[1] @ (x, y, 1)
        of the image, in pixels; whole numbers are the middles of pixels. Around the image is black.
    out: uint8 (height, width, 3), C-contiguous; overwritten.

Raises:
    ValueError: A shape does not fit, or the map is not finite.)");

    static const py::handle changed = py::exception<FileChanged>(module, "FileChanged", PyExc_ValueError).release();
    py::setattr(changed, "__doc__", py::str("A file is no longer the one that was opened: cut short or replaced."));
    py::register_local_exception_translator([](std::exception_ptr thrown) {
        try {
            std::rethrow_exception(thrown);
        } catch (const FileChanged& error) {
            raise(changed.ptr(), error);
        } catch (const std::invalid_argument& error) {
            raise(PyExc_ValueError, error);
        } catch (const std::out_of_range& error) {
            raise(PyExc_IndexError, error);
        }
    });

    py::class_<RecordFile>(module, "RecordFile", R"(The images of a RecordIO file, numbered 0 up to images - 1.

They are numbered identity by identity, in the order of the identities' labels in the file. All methods may be called
from several threads. What is wrong with a file is a ValueError that names the file; an image that there is not is an
IndexError.)")
        .def(py::init([](const std::filesystem::path& records, const std::filesystem::path& index) {
            py::gil_scoped_release release;
            return std::make_unique<RecordFile>(records.string(), index.string());
        }), py::arg("records"), py::arg("index"), R"(Open a file of records, native InsightFace's or im2rec's.

Args:
    records: Path of the .rec file.
    index: Path of its .idx file, lines of a key and a byte offset.

Raises:
    ValueError: A file cannot be read, or does not hold what it should.)")
        .def_property_readonly("images", &RecordFile::images, "How many images the file holds.")
        .def_property_readonly("identities", &RecordFile::identities, "How many identities the file holds.")
        .def_property_readonly("offsets",
                               [](const py::object& self) {
                                   const auto& file = self.cast<const RecordFile&>();
                                   return read_only(file.offsets(), file.identities() + 1, self);
                               },
                               "Where the images of each identity begin: int64 (identities + 1,), read-only.")
        .def_property_readonly("note", [](const RecordFile& self) { return text_of(self.note()); },
                               "What a user should know of how the files were opened; mostly empty.")
        .def("key", &RecordFile::key, py::arg("image"), "Return the key of an image's record in the index.")
        .def("label", &RecordFile::label, py::arg("image"), GilRelease(),
             "Read the label, in the file, of an image's identity.")
        .def("jpeg", &jpeg, py::arg("image"), "Read an image as it is encoded: its bytes, read-only uint8.")
        .def("jpegs", &jpegs, py::arg("images"), R"(Read several images, asked of the disk together.

Args:
    images: Their numbers, int64 (B,).

Returns:
    What `jpeg` returns of each; one failure fails the call.)");

    py::class_<Sampler>(module, "Sampler", R"(Draws batches of pairs from domains: a function of the seed and the step.

fastmfr.sampler.GroupedDomainSampler is the class to use. Methods may be called from several threads.)")
        .def(py::init(&make_sampler), py::arg("names"), py::arg("offsets"), py::arg("share"), py::arg("seed"),
             py::arg("rank"), py::arg("world"), py::arg("augment"), py::arg("per_domain"),
             py::arg("people") = std::vector<std::vector<uint32_t>>(), py::arg("turns") = std::vector<uint32_t>(),
             R"(Prepare to draw for one rank.

Args:
    names: Name of each domain, for messages.
    offsets: Of each domain int64 (identities + 1,): identity k has images offsets[k] to offsets[k + 1] - 1. Copied.
    share: Identities that a rank draws at a step, at least 1.
    seed: In [0, 2**64).
    rank: In [0, world).
    world: Number of ranks.
    augment: Whether identities with one image are drawn, and paired with themselves.
    per_domain: Whether `split` trains on `share` identities of each meta-train domain, not of all together.
    people: Of each domain uint32 (identities,): the person of each identity. Empty: no two identities are one.
    turns: Domains that the slots of `batch` take, over and over, uint32. Empty: one after the other.

Raises:
    ValueError: A number is out of its range, or a domain has too few identities for a batch.)")
        .def("dropped", &Sampler::dropped, py::arg("domain"),
             "Return how many identities of a domain, given by its number, are never drawn.")
        .def("batch", [](const Sampler& self, uint64_t step) { return draw(self, self.batch(), step); },
             py::arg("step"), "Draw from all domains: int64 (4, share), rows of domain, identity, gallery and probe.")
        .def("split", [](const Sampler& self, uint64_t step, uint32_t meta_test) {
            return std::pair(draw(self, self.train(meta_test), step), draw(self, self.test(meta_test), step));
        }, py::arg("step"), py::arg("meta_test"), R"(Draw a split that tests on one domain and trains on the others.

Args:
    step: The number of the step.
    meta_test: The number of the domain that is left out.

Returns:
    (train, test), each as `batch` returns it.

Raises:
    ValueError: There is one domain only, or a domain has too few identities.)");
}
