from setuptools import Extension, setup

COMPILED = ("app.features.compiled", "app.adapters.compiled_layout")

# Optional: where there is no C compiler, numpy and Python do the same. -O3 because Debian's Python is built with -O2, with which
# GCC vectorizes hardly any loop whose length it does not know.
setup(
    ext_modules=[
        Extension(name, [f"{name.replace('.', '/')}.pyx"], extra_compile_args=["-O3"], optional=True)
        for name in COMPILED
    ],
)
