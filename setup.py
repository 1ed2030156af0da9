from setuptools import Extension, setup

COMPILED = ("app.features.compiled", "app.adapters.compiled_layout")

# Optional: where there is no C compiler, numpy and Python do the same.
setup(
    ext_modules=[Extension(name, [f"{name.replace('.', '/')}.pyx"], optional=True) for name in COMPILED],
)
