"""`lltool devices`: lists the devices that models can run on."""

from dataclasses import asdict

from lltool.tools.arguments import command_parser, print_json
from lltool.tools.parser import CommandParser
from lltool.tools.talk import note

EXAMPLES = """
lltool devices
lltool run model.gguf "Hello" --device opencl:0 -ngl all
"""


def parser() -> CommandParser:
    return command_parser(
        "devices",
        "Lists the devices that -ngl and --device can choose. Without --device, -ngl takes the first GPU; an OpenCL "
        "driver for the CPU has to be asked for by its name.",
        EXAMPLES,
        json_flag=True,
    )


def main(argv: list[str]) -> int:
    from lltool.engine.cpu.tuning import cpu_name
    from lltool.engine.gpu.opencl import find_devices
    from lltool.eval.common.tables import format_table

    arguments = parser().parse_args(argv)
    found = find_devices()
    if arguments.json:
        print_json([asdict(device) for device in found])
        return 0
    rows = [
        (device.id, device.name, "GPU" if device.is_gpu else "CPU", f"{device.memory / 2**30:.1f}", device.driver)
        for device in found
    ]
    print(
        format_table(
            ("device", "name", "kind", "GiB", "driver"), [("none", cpu_name(), "CPU", "", "lltool"), *rows], left=3
        )
    )
    if not found:
        note("no OpenCL device was found; `pip install 'lltool[opencl]'` and the driver of the GPU's maker are needed")
    return 0
