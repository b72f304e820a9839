import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))  # modules that these tests share; importlib mode adds no folder by itself
