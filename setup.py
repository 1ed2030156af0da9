from setuptools import Extension, setup

COMPILED = ("app.features.compiled", "app.adapters.compiled_layout")

# Optional: where there is no C compiler, numpy and Python do the same. -O3 because not all Pythons are built with it, and
# without it GCC vectorizes only the loops that need no check of what overlaps.
setup(
    ext_modules=[
        Extension(name, [f"{name.replace('.', '/')}.pyx"], extra_compile_args=["-O3"], optional=True)
        for name in COMPILED
    ],
)
