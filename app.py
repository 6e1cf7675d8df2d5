"""The browser's front door: page configuration and navigation, nothing else."""

import streamlit as st

from pages._door import left_open

st.set_page_config(page_title="Dicescope", page_icon="pages/_assets/icon.png", layout="wide")

if left_open():
    st.error("Nothing guards this address, so nothing is shown. Start the dashboard with: `python cli.py app`")
    st.stop()

st.navigation(
    [
        st.Page("pages/overview.py", title="Overview", icon=":material/dashboard:", default=True),
        st.Page("pages/slices.py", title="Slices", icon=":material/view_in_ar:"),
        st.Page("pages/layers.py", title="Layers", icon=":material/layers:"),
        st.Page("pages/distributions.py", title="Distributions", icon=":material/area_chart:"),
        st.Page("pages/diagnosis.py", title="Diagnosis", icon=":material/troubleshoot:"),
        st.Page("pages/training.py", title="Training", icon=":material/model_training:"),
        st.Page("pages/data.py", title="Data", icon=":material/folder_open:"),
        st.Page("pages/report.py", title="Report", icon=":material/description:"),
    ]
).run()
